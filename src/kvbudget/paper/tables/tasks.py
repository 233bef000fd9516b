"""Scores of all methods at one length and budget, a column for each task."""

from collections.abc import Iterator

from kvbudget.paper import latex, layout, shown
from kvbudget.paper.latex import Latex
from kvbudget.paper.source import Source
from kvbudget.paper.tables import abreast

#: Points that the name of a task has at most, and tasks that stand side by side.
TASK, ABREAST = 44, 7


def text(src: Source) -> str:
    """LaTeX of what `kvbudget.paper.shown.tasks` names, a float for as many models as fit; nothing
    where tasks are few."""
    return abreast.table(src, "tasks", list(_floats(src)))


def _floats(src: Source) -> Iterator[dict]:
    chosen = shown.tasks(src)
    for tasks in layout.chunks(chosen.tasks if chosen else [], ABREAST):
        yield from _beside(src, chosen, list(tasks))


def _beside(src: Source, chosen: shown.Tasks, tasks: list[str]) -> Iterator[dict]:
    """Floats of some of these tasks, a column each."""
    found, rows = [], []
    for model in chosen.models:
        places = [(model, task, chosen.length) for task in tasks]
        of_model = abreast.keys(src, places, chosen.budget)
        found += of_model
        rows += abreast.rows(src, of_model, {"score": latex.title(src.study, "models", model)})
    titles = [latex.title(src.study, "tasks", task) for task in tasks]
    for number, piece in enumerate(layout.by_height(rows)):
        yield {
            "models": [],
            "heads": [Latex(rf"\named[{TASK}pt]{{{title}}}") for title in titles],
            "rows": piece,
            "caption": Latex(_caption(src, chosen, found) + (" (Continued.)" if number else "")),
        }


def _caption(src: Source, chosen: shown.Tasks, found: list[list[tuple]]) -> str:
    return (
        rf"Scores on all tasks with prompts of {chosen.length:,} tokens, "
        f"{abreast.at(chosen.budget)}, with models whose full cache answers {shown.LEAST_TASKS} "
        "of them or more. "
        f"{abreast.note(src, found)}"
    )
