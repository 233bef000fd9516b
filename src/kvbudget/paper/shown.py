"""What the main text shows of a study that is too large for it: one task, and one budget. The
appendix has all of them."""

from dataclasses import dataclass

import pandas as pd

from kvbudget.paper import budgets
from kvbudget.paper.source import Source
from kvbudget.study.plan import FULL

PLACE = ["model", "length", "budget"]
#: Fewer tasks need no table of their own.
LEAST_TASKS = 2


@dataclass(frozen=True)
class Tasks:
    """What is scored at one length and budget: tasks, and the models that answer enough of them."""

    length: int
    budget: str
    models: list[str]
    tasks: list[str]


def task(src: Source) -> str | None:
    """The task at which methods are measured at most places and budgets, the first among equals;
    None where nothing is evicted."""
    places = _evicting(src).groupby("task", sort=False).size()
    return None if places.empty else str(places.idxmax())


def budget(src: Source) -> str | None:
    """The budget at which that task is measured at most places, the middle one among equals."""
    frame = _evicting(src)
    counts = frame.loc[frame["task"] == task(src), "budget"].value_counts()
    equals = sorted(counts[counts == counts.max()].index, key=budgets.order)
    return equals[(len(equals) - 1) // 2] if equals else None


def over_lengths(src: Source) -> pd.DataFrame:
    """Cells of main methods on that task at that budget, and of the full cache, where a method is
    measured with a model at two lengths or more."""
    frame = src.cells[src.cells["method"].isin(src.study.main_methods)]
    frame = frame[frame["task"] == task(src)]
    frame = frame[(frame["policy"] == FULL) | (frame["budget"] == budget(src))]
    return frame[frame.groupby(["model", "method"])["length"].transform("nunique") > 1]


def tasks(src: Source) -> Tasks | None:
    """The length and budget at which most pairs of model and task are scored, of models with
    `LEAST_TASKS` headline tasks there or more, the first among equals; None where there is no such
    model."""
    scored = src.cells.loc[src.cells["metric"] == "score", ["task", *PLACE, "headline"]]
    scored = _evicting(src).merge(scored.drop_duplicates())
    enough = scored.groupby(PLACE)["headline"].transform("sum") >= LEAST_TASKS
    scored = scored[enough]
    if scored.empty:
        return None
    length, budget = scored.groupby(["length", "budget"], sort=False).size().idxmax()
    there = scored[(scored["length"] == length) & (scored["budget"] == budget)]
    models, found = set(there["model"]), set(there["task"])
    planned = dict.fromkeys(cell.task for cell in src.study.cells)
    return Tasks(
        int(length),
        str(budget),
        [model for model in src.study.models if model in models],
        [task for task in planned if task in found],
    )


def key(src: Source, place: tuple, method: str, budget: str) -> tuple:
    """Of a method at a place (model, task, length): the full cache has no budget."""
    return (*place, method, FULL if src.study.policy(method) == FULL else budget)


def methods(src: Source, places: list[tuple], budget: str) -> list[str]:
    """Main methods that are measured at a budget at half of the places at which any is, or more;
    where none is, all that are measured."""
    open_ = {key[:3] for key in src.measured}.intersection(places)
    counts = {
        method: sum(key(src, place, method, budget) in src.measured for place in open_)
        for method in src.study.main_methods
    }
    enough = [method for method, number in counts.items() if 2 * number >= len(open_) > 0]
    return enough or [method for method, number in counts.items() if number]


def _evicting(src: Source) -> pd.DataFrame:
    """A row a place and budget at which a main method evicts."""
    frame = src.cells[src.cells["method"].isin(src.study.main_methods)]
    return frame.loc[frame["policy"] != FULL, ["task", *PLACE]].drop_duplicates()
