"""All methods at one budget: score and NLL, a column for each model and length."""

from collections.abc import Iterator

from kvbudget.paper import latex, layout, shown
from kvbudget.paper.latex import Latex
from kvbudget.paper.layout import Row
from kvbudget.paper.phrases.words import METRIC_TITLE
from kvbudget.paper.source import Source
from kvbudget.paper.tables.marks import MEANING, marks
from kvbudget.paper.tables.quality import by_metric
from kvbudget.paper.template import render
from kvbudget.study.plan import FULL

#: Lengths that stand side by side.
ABREAST = 12
#: Points that the name of a model has at least.
MODEL = 80
METRICS = ("score", "nll")

Place = tuple[str, int]


def text(src: Source) -> str:
    """LaTeX of one task at one budget (`kvbudget.paper.shown`); by as many lengths as fit."""
    task, budget = shown.task(src), shown.budget(src)
    frame = src.cells[(src.cells["task"] == task) & src.cells["budget"].isin([budget, FULL])]
    places = sorted(
        set(frame[["model", "length"]].itertuples(index=False, name=None)),
        key=lambda place: (src.study.models.index(place[0]), place[1]),
    )
    floats = [_float(src, str(task), str(budget), piece) for piece in _pieces(src, places)]
    for number, entry in enumerate(floats, 1):
        entry["label"] = f"tab:places-{number}"
    return render("places.tex.j2", notes=src.notes(), floats=floats)


def _pieces(src: Source, places: list[Place]) -> Iterator[list[Place]]:
    return layout.chunks(places if shown.task(src) else [], ABREAST)


def _float(src: Source, task: str, budget: str, places: list[Place]) -> dict:
    models = dict.fromkeys(model for model, _ in places)
    keys = [
        (model, task, length, method, FULL if src.study.policy(method) == FULL else budget)
        for method in src.study.main_methods
        for model, length in places
    ]
    return {
        "models": [
            _heading(src, model, sum(model == other for other, _ in places)) for model in models
        ],
        "lengths": [Latex(f"{length:,}") for _, length in places],
        "rows": list(_rows(src, keys, len(places))),
        "caption": _caption(src, task, budget, keys),
    }


def _heading(src: Source, model: str, lengths: int) -> dict:
    """A model over its columns; its name is broken where it is longer than they are wide."""
    title = latex.title(src.study, "models", model)
    width = max(MODEL, lengths * layout.NUMBER)
    return {"title": Latex(rf"\named[{width}pt]{{{title}}}"), "lengths": lengths}


def _rows(src: Source, keys: list[tuple], columns: int) -> Iterator[Row]:
    values, marked = by_metric(src), marks(src)
    for metric in METRICS:
        if not any((*key, metric) in values for key in keys):
            continue
        for start in range(0, len(keys), columns):
            mine = [(*key, metric) for key in keys[start : start + columns]]
            if any(key in values for key in mine):
                cells = [_cell(values.get(key), marked.get(key, "")) for key in mine]
                title = layout.named(src.study, "methods", mine[0][3])
                yield Row(Latex(METRIC_TITLE[metric]), [title, *cells])


def _cell(found: dict | None, mark: str) -> Latex:
    return Latex(latex.decimal(found["value"]) + mark if found else latex.DASH)


def _caption(src: Source, task: str, budget: str, keys: list[tuple]) -> Latex:
    ours = latex.title(src.study, "methods", src.study.ours) if src.study.ours else "Head-Aware"
    of = "tokens" if budget.isdigit() else "of the bytes"
    return Latex(
        rf"{latex.title(src.study, 'tasks', task)} at a budget of {latex.budget(budget)} {of}, by "
        rf"model and tokens of the prompt. {layout.sample_note(src, keys)} {MEANING.format(ours)} "
        r"Intervals are in \cref{sec:results}."
    )
