"""How results are laid out in tables: which rows, which columns, how many to a float."""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from kvbudget.paper import latex
from kvbudget.paper.latex import Latex
from kvbudget.study.plan import FULL, Study

LENGTHS_A_FLOAT = 3
ROWS_A_FLOAT = 40


@dataclass(frozen=True)
class Row:
    """A row of a table; `group` is the heading under which it stands."""

    group: str
    cells: list[Latex]


def with_interval(value: float, low: float, high: float, signed: bool = False) -> Latex:
    """A value and its interval in brackets; a dash for NaN."""
    number = latex.signed(value) if signed else latex.decimal(value)
    if pd.isna(value):
        return number
    if pd.isna(low):
        return Latex(rf"{number}\bounds{{{latex.DASH}}}{{{latex.DASH}}}")
    return Latex(rf"{number}\bounds{{{latex.decimal(low)}}}{{{latex.decimal(high)}}}")


def budget_order(token: str) -> tuple[int, int]:
    """Full first, then shares, then tokens, each ascending."""
    if token == FULL:
        return (0, 0)
    return (1, int(float(token[:-1]) * 1000)) if token.endswith("p") else (2, int(token))


def experiment_cells(study: Study, experiment: dict) -> list[tuple[str, str, int, str, str]]:
    """Keys of the experiment's planned cells."""
    return [c.key for c in study.cells if experiment["name"] in c.experiments]


def chunks(items: list, size: int) -> Iterator[list]:
    """Consecutive pieces of at most `size` items, as even as they can be."""
    pieces = -(-len(items) // size)
    start = 0
    for piece in range(pieces):
        end = start + -(-(len(items) - start) // (pieces - piece))
        yield items[start:end]
        start = end


def method_budget_rows(study: Study, keys: list[tuple]) -> list[tuple[str, str]]:
    """(method, budget) pairs: budgets in order, within each the study's order of methods."""
    pairs = {(method, budget) for *_, method, budget in keys}
    rank = {method: i for i, method in enumerate(study.methods)}
    return sorted(pairs, key=lambda p: (budget_order(p[1]), rank[p[0]]))
