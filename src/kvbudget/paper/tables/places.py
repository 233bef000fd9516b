"""All methods on one task at one budget: score and NLL, a column for each model and length."""

from kvbudget.paper import latex, layout, shown
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import METRIC_TITLE
from kvbudget.paper.source import Source
from kvbudget.paper.tables import abreast
from kvbudget.paper.tables.abreast import Place
from kvbudget.study.plan import FULL

#: What is told, and under which headings.
HEADINGS = {name: METRIC_TITLE[name] for name in ("score", "nll")}
#: Lengths that stand side by side.
ABREAST = 12
#: Points that the name of a model has at least.
MODEL = 80


def text(src: Source) -> str:
    """LaTeX of one task at one budget (`kvbudget.paper.shown`); by as many lengths as fit."""
    task, budget = shown.task(src), shown.budget(src)
    frame = src.cells[(src.cells["task"] == task) & src.cells["budget"].isin([budget, FULL])]
    places = sorted(
        set(frame[["model", "task", "length"]].itertuples(index=False, name=None)),
        key=lambda place: (src.study.models.index(place[0]), place[2]),
    )
    pieces = layout.chunks(places if budget else [], ABREAST)
    floats = [_float(src, str(budget), list(piece)) for piece in pieces]
    return abreast.table(src, "places", floats, "This study measures no method that evicts.")


def _float(src: Source, budget: str, places: list[Place]) -> dict:
    models = [model for model, *_ in places]
    found = abreast.keys(src, places, budget)
    return {
        "models": [_heading(src, model, models.count(model)) for model in dict.fromkeys(models)],
        "heads": [Latex(f"{length:,}") for *_, length in places],
        "rows": list(abreast.rows(src, found, HEADINGS)),
        "caption": _caption(src, budget, found),
    }


def _heading(src: Source, model: str, lengths: int) -> dict:
    """A model over its columns; its name is broken where it is longer than they are wide."""
    title = latex.title(src.study, "models", model)
    width = max(MODEL, lengths * layout.NUMBER)
    return {"title": Latex(rf"\named[{width}pt]{{{title}}}"), "columns": lengths}


def _caption(src: Source, budget: str, found: list[list[tuple]]) -> Latex:
    return Latex(
        rf"{latex.title(src.study, 'tasks', str(shown.task(src)))} {abreast.at(budget)}, by model "
        "and tokens of the prompt. "
        f"{abreast.note(src, found)}"
    )
