"""The bench as tables in Markdown and as a CSV file."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kvbudget.paper.bench import TITLES


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        head: what stands above it.
        key: of the rows that `kvbudget bench` writes.
        printed: a number in print.
    """

    head: str
    key: str
    printed: Callable[[float], str]


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _mib(value: float) -> str:
    return f"{value / 2**20:,.0f}"


COLUMNS = (
    Column("step (ms)", "step_ms", "{:.0f}".format),
    Column("over transformers", "step_over_stock", _ratio),
    Column("over no context", "step_over_alone", _ratio),
    Column("prefill over transformers", "prefill_over_stock", _ratio),
    Column("in pieces over whole", "pieces_over_whole", _ratio),
    Column("planned (MiB)", "planned_bytes", _mib),
    Column("allocated (MiB)", "allocated_bytes", _mib),
    Column("over plan", "over_plan", "{:.3f}".format),
    Column("peak of the process (MiB)", "peak_bytes", _mib),
    Column("of that, reading (MiB)", "peak_above_start_bytes", _mib),
    Column("peak of the GPU (MiB)", "peak_cuda_bytes", _mib),
)


def report(found: Mapping[str, Any]) -> str:
    """All tables, and what was left out."""
    told = [f"{TITLES[name]}: left out. {why}" for name, why in found["left_out"].items()]
    return "\n\n".join([steps(found), *([parts(found)] if found["parts"] else []), *told])


def steps(found: Mapping[str, Any]) -> str:
    """A line for each dtype, number of tokens and subject; columns that were measured."""
    rows = found["rows"]
    columns = [each for each in COLUMNS if any(row.get(each.key) is not None for row in rows)]
    head = ("numbers", "tokens", "kept", *(each.head for each in columns))
    order = list(TITLES)
    rows = sorted(rows, key=lambda row: (row["tokens"], order.index(row["subject"])))
    dtypes = dict.fromkeys(row["dtype"] for row in found["rows"])
    lines = (
        (dtype, f"{row['tokens']:,}", TITLES[row["subject"]], *(_cell(row, c) for c in columns))
        for dtype in dtypes
        for row in rows
        if row["dtype"] == dtype
    )
    return _table(head, lines)


def parts(found: Mapping[str, Any]) -> str:
    """Milliseconds of the parts of a step, a column for each subject."""
    frame = pd.DataFrame(found["parts"])
    blocks = []
    for (dtype, tokens), own in frame.groupby(["dtype", "tokens"], sort=False):
        names = list(dict.fromkeys(own["subject"]))
        wide = own.pivot(index="part", columns="subject", values="ms")[names]
        wide = wide.loc[list(dict.fromkeys(own["part"]))]
        wide.loc["all"] = wide.sum()
        head = (f"ms of a step ({dtype}, {tokens:,} tokens)", *(TITLES[name] for name in names))
        lines = (
            (part, *("" if pd.isna(value) else f"{value:.1f}" for value in row))
            for part, row in zip(wide.index, wide.to_numpy(), strict=True)
        )
        blocks.append(_table(head, lines))
    return "\n\n".join(blocks)


def write_csv(found: Mapping[str, Any], path: Path) -> None:
    """The rows, with the model's name."""
    frame = pd.DataFrame(found["rows"])
    frame.insert(0, "model", found["model"])
    frame.to_csv(path, index=False)


def _cell(row: Mapping[str, Any], column: Column) -> str:
    value = row.get(column.key)
    return "" if value is None else column.printed(value)


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))
