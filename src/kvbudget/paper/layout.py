"""How results are laid out in tables: which rows, which columns, how many to a float."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from kvbudget.paper import budgets, latex
from kvbudget.paper.latex import Latex
from kvbudget.paper.source import Source
from kvbudget.policies import registry
from kvbudget.study.plan import AXES, Study

#: Lines of rows that a float holds in the mean; a page has room for some more.
LINES_A_FLOAT = 38
#: Characters to a line of a title, as main.tex breaks it.
NAMED = 38
#: Widths in points, of which main.tex leaves so many to a float over one column and over two.
COLUMN, PAGE = 241, 504
#: The columns of method and budget, whose titles main.tex breaks.
NAMES = 180
#: A number, and a number with its interval.
NUMBER, INTERVAL = 34, 64


@dataclass(frozen=True)
class Column:
    """A column of numbers: the metric, its heading and its width in points."""

    metric: str
    head: Latex
    width: int = NUMBER


@dataclass(frozen=True)
class Row:
    """A row of a table; `group` is the heading under which it stands."""

    group: Latex
    cells: list[Latex]

    @property
    def lines(self) -> int:
        """About how many lines its longest title takes."""
        shown = (len(re.sub(r"\\[A-Za-z]+|[\\{}()]", "", cell)) for cell in self.cells)
        return -(-max(shown) // NAMED)


def with_interval(
    value: float, low: float, high: float, signed: bool = False, mark: str = ""
) -> Latex:
    """A value with its mark, and its interval in brackets, if it has one; a dash for NaN."""
    number = Latex((latex.signed(value) if signed else latex.decimal(value)) + mark)
    if pd.isna(value):
        return number
    if pd.isna(low):
        return number
    return Latex(rf"{number}\bounds{{{latex.decimal(low)}}}{{{latex.decimal(high)}}}")


def experiment_cells(study: Study, experiment: dict) -> list[tuple[str, str, int, str, str]]:
    """Keys of the experiment's planned cells; those of several seeds have one."""
    keys = (c.key for c in study.cells if experiment["name"] in c.experiments)
    return list(dict.fromkeys(keys))


def others(study: Study, keys: list[tuple]) -> bool:
    """Whether a library of others makes some of these caches."""
    policies = {study.policy(method) for *_, method, _ in keys}
    return any(registry.method(policy).elsewhere for policy in policies)


def experiment_title(experiment: dict) -> Latex:
    """Name in print of an experiment."""
    return latex.typeset(experiment.get("title") or experiment["name"])


def named(study: Study, section: str, key: str) -> Latex:
    """A title that is broken where it is longer than its column."""
    return Latex(rf"\named{{{latex.title(study, section, key)}}}")


def chunks(items: Sequence, size: int) -> Iterator[Sequence]:
    """Consecutive pieces of at most `size` items, as even as they can be."""
    pieces = -(-len(items) // size)
    start = 0
    for piece in range(pieces):
        end = start + -(-(len(items) - start) // (pieces - piece))
        yield items[start:end]
        start = end


def by_height(rows: list[Row]) -> Iterator[list[Row]]:
    """Rows that a float holds."""
    lines = sum(row.lines for row in rows)
    return chunks(rows, max(1, LINES_A_FLOAT * len(rows) // max(1, lines)))


def by_width(lengths: list[int], columns: list[Column]) -> Iterator[list[int]]:
    """Lengths that stand side by side without being made smaller."""
    each = sum(column.width for column in columns)
    return chunks(lengths, max(1, (PAGE - NAMES) // each))


def method_budget_rows(study: Study, keys: list[tuple]) -> list[tuple[str, str]]:
    """(method, budget) pairs: budgets in order, within each the study's order of methods."""
    pairs = {(method, budget) for *_, method, budget in keys}
    rank = {method: i for i, method in enumerate(study.methods)}
    return sorted(pairs, key=lambda p: (budgets.order(p[1]), rank[p[0]]))


def floats(
    rows: list[Row], lengths: list[int], columns: list[Column], caption: str
) -> Iterator[dict]:
    """Split rows over floats; a heading is repeated where its rows go on."""
    width = NAMES + len(lengths) * sum(column.width for column in columns)
    for number, piece in enumerate(by_height(rows)):
        yield {
            "wide": width > COLUMN,
            "rows": piece,
            "lengths": [f"{length:,} tokens" for length in lengths],
            "heads": [column.head for column in columns],
            "caption": Latex(caption + (" (Continued.)" if number else "")),
        }


def budget(src: Source, keys: list[tuple]) -> Latex:
    """The budget of a row in print: `all kept` where none of its cells evicts anything."""
    measured = [key for key in keys if key in src.measured]
    return latex.budget(keys[0][4], bool(measured) and src.all_kept.issuperset(measured))


def sample_note(src: Source, keys: list[tuple]) -> str:
    """How many samples and contexts the cells of these keys have."""
    part = src.cells[src.cells["metric"] == "nll"].set_index(list(AXES))
    part = part[part.index.isin(pd.MultiIndex.from_tuples(keys))]
    return (
        rf"\(n\) = {span(part['n_samples'])} samples on {span(part['n_contexts'])} contexts a cell."
    )


def span(counts: pd.Series) -> str:
    """The least and the largest of counts: `6`, or `2 to 6`."""
    if counts.empty:
        return "0"
    low, high = counts.min(), counts.max()
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
