"""The generated files of the paper: which module makes each, and from what.

Modules are named here and imported when asked for, so one figure knows nothing of another. What a
module may read is what is declared (`Source.table` refuses the rest), and the workflow takes its
inputs from here: a table is made again when one of them has changed, and only then.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kvbudget.errors import UserError
from kvbudget.options import suggest


@dataclass(frozen=True, kw_only=True)
class Made:
    """How a generated file is made.

    Attributes:
        module: its `text(src)` or `draw(src)` makes it.
        what: the file in a few words.
        csv: the CSV files that it is made from, beside the plan.
        template: the file of `templates/` that it fills.
    """

    module: str
    what: str
    csv: tuple[str, ...] = ()
    template: str | None = None


#: `experiments` stands for one table an experiment, `experiments/NAME`.
TABLES = {
    "experiments": Made(
        module="kvbudget.paper.tables.experiments",
        what="quality and cost of one experiment: experiments/NAME",
        csv=("cells", "comparisons", "held", "orders"),
        template="experiment.tex.j2",
    ),
    "places": Made(
        module="kvbudget.paper.tables.places",
        what="all methods at one budget, by model and length",
        csv=("cells", "comparisons"),
        template="abreast.tex.j2",
    ),
    "tasks": Made(
        module="kvbudget.paper.tables.tasks",
        what="all methods at one length and budget, by task",
        csv=("cells", "comparisons"),
        template="abreast.tex.j2",
    ),
    "summary": Made(
        module="kvbudget.paper.tables.summary",
        what="Head-Aware against each peer at each budget, places together",
        csv=("pooled",),
        template="summary.tex.j2",
    ),
    "ablation": Made(
        module="kvbudget.paper.tables.ablation",
        what="what each variant of Head-Aware gains or loses, by budget",
        csv=("pooled",),
        template="ablation.tex.j2",
    ),
    "tally": Made(
        module="kvbudget.paper.tables.tally",
        what="how often Head-Aware is clearly better and worse than each peer",
        csv=("comparisons",),
        template="tally.tex.j2",
    ),
    "statistics": Made(
        module="kvbudget.paper.tables.statistics",
        what="paired comparisons of Head-Aware and its variants, places together",
        csv=("pooled",),
        template="statistics.tex.j2",
    ),
    "provenance": Made(
        module="kvbudget.paper.tables.provenance",
        what="models, software and machine",
        csv=("models", "provenance", "code_digests"),
        template="provenance.tex.j2",
    ),
    "all": Made(
        module="kvbudget.paper.tables.index",
        what="macros that bring in the tables and list the experiments",
        template="all.tex.j2",
    ),
}
FIGURES = {
    "quality": Made(
        module="kvbudget.paper.plots.quality",
        what="quality against the bytes of the budget",
        csv=("cells",),
    ),
    "lengths": Made(
        module="kvbudget.paper.plots.lengths",
        what="quality over the length of the prompt, at one budget",
        csv=("cells",),
    ),
    "leaderboard": Made(
        module="kvbudget.paper.plots.leaderboard",
        what="score over the share of tokens evicted, and over that of bytes saved",
        csv=("cells",),
    ),
    "memory": Made(
        module="kvbudget.paper.plots.memory",
        what="memory over the length of the prompt",
        csv=("cells",),
    ),
    "speed": Made(
        module="kvbudget.paper.plots.speed",
        what="decode speed and prefill time over the full cache's",
        csv=("cells",),
    ),
    "heads": Made(
        module="kvbudget.paper.plots.heads",
        what="what each query head does, layer by layer",
        csv=("heads",),
    ),
    "allocation": Made(
        module="kvbudget.paper.plots.allocation",
        what="where budgets go, KV head by KV head",
        csv=("allocation",),
    ),
    "loss_curves": Made(
        module="kvbudget.paper.plots.loss_curves",
        what="what heads lose as they keep less",
        csv=("loss_curves",),
    ),
    "ranks": Made(
        module="kvbudget.paper.plots.ranks",
        what="how well predicted scores rank tokens, layer by layer",
        csv=("ranks",),
    ),
}
NUMBERS = Made(
    module="kvbudget.paper.numbers",
    what="every number of the prose",
    csv=(
        "cells",
        "comparisons",
        "pooled",
        "heads",
        "stability",
        "scorer",
        "ranks",
        "models",
        "provenance",
        "code_digests",
        "missing",
    ),
    template="numbers.tex.j2",
)


def table(name: str) -> tuple[Made, tuple[str, ...]]:
    """How a table is made, and the experiment that its module is told.

    Raises:
        UserError: there is no such table.
    """
    family, *experiment = name.split("/", 1)
    made = _known("table", family, TABLES)
    if (family == "experiments") != bool(experiment):
        raise UserError(
            f"there is no table {name!r}; that of an experiment is called experiments/NAME"
        )
    return made, tuple(experiment)


def figure(name: str) -> Made:
    """How a figure is made.

    Raises:
        UserError: there is no such figure.
    """
    return _known("figure", name, FIGURES)


def listing(entries: Mapping[str, Made]) -> str:
    """What there is, a line each."""
    return "\n".join(f"{name:14}{made.what}" for name, made in entries.items())


def _known(kind: str, name: str, entries: Mapping[str, Made]) -> Made:
    if name not in entries:
        raise UserError(
            f"there is no {kind} {name!r}{suggest(name, entries)}; there are {', '.join(entries)}"
        )
    return entries[name]
