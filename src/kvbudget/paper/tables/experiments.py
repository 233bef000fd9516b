"""One experiment: for each model floats of quality, bytes held, orders, needles and cost."""

from kvbudget.errors import UserError
from kvbudget.options import suggest
from kvbudget.paper import layout
from kvbudget.paper.source import Source
from kvbudget.paper.tables import cost, held, needles, orders, quality
from kvbudget.paper.template import render


def text(src: Source, name: str) -> str:
    """LaTeX of the experiment `name`.

    Raises:
        UserError: the study has no such experiment.
    """
    experiment = _named(src, name)
    keys = layout.experiment_cells(src.study, experiment)
    floats = []
    for model in dict.fromkeys(key[0] for key in keys):
        mine = [key for key in keys if key[0] == model]
        for part in (quality, held, orders, needles, cost):
            floats += part.floats(src, experiment, model, mine)
    for number, entry in enumerate(floats, 1):
        entry["label"] = f"tab:experiment-{name}-{number}"
    return render("experiment.tex.j2", notes=src.notes(), floats=floats, name=name)


def _named(src: Source, name: str) -> dict:
    known = {experiment["name"]: experiment for experiment in src.study.experiments}
    if name not in known:
        raise UserError(
            f"study {src.study.name!r} has no experiment {name!r}{suggest(name, known)}; "
            f"it has {', '.join(known)}"
        )
    return known[name]
