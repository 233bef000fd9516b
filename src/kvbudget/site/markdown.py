"""Results of published studies as Markdown tables, for README and the guides.

A number there is one of an archive of results/published/, as the CSV files made of it have it; none
is typed.
"""

import functools
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from kvbudget.analysis import schema
from kvbudget.analysis.aggregate import aggregate
from kvbudget.paper import budgets
from kvbudget.paper.phrases.words import METRIC_TITLE
from kvbudget.site import plain
from kvbudget.study import bundle, published
from kvbudget.study.config import read
from kvbudget.study.expand import expand
from kvbudget.study.plan import FULL, Study

NOTHING = "No study is published yet."
#: What a number is of, one after the other.
METRICS = {"score": 2, "nll": 3}
_SCORE = " / ".join(METRIC_TITLE[name] for name in METRICS)
ABSENT = "–"
_ROW = ["model", "task", "length", "budget"]
_ORDER = {"better": "holds", "worse": "contrary", "unclear": "unclear"}
#: More methods than these stand in rows, with the bytes that they hold.
_WIDE = 10


def of_all(root: Path) -> str:
    """Every experiment of every study that is published under a root."""
    names = published.names(root)
    return "\n\n".join(of_study(name, root) for name in names) or NOTHING


def of_study(name: str, root: Path) -> str:
    """What a published study is of, and a table for each of its experiments."""
    study, tables = tables_of(name, root)
    parts = [f"## Study `{name}`\n\n{_facts(study, tables)}"]
    for experiment in study.experiments:
        title = plain.typeset(experiment.get("title", experiment["name"]))
        parts.append(f"### {title}\n\n{_table(study, tables['cells'], experiment)}")
    return "\n\n".join(parts)


def of_experiment(name: str, experiment: str, root: Path) -> str:
    """The table of one experiment of a published study."""
    study, tables = tables_of(name, root)
    return _table(study, tables["cells"], named(study, experiment))


def named(study: Study, experiment: str) -> dict[str, Any]:
    """The experiment of a name."""
    return next(each for each in study.experiments if each["name"] == experiment)


def of_orders(name: str, experiment: str, root: Path) -> str:
    """Of one experiment of a published study, whether methods stand in the orders that it names:
    each minus the next, and the verdict."""
    study, tables = tables_of(name, root)
    frame = tables["orders"]
    frame = frame[(frame["experiment"] == experiment) & frame["metric"].isin(METRICS)]
    rows = list(dict.fromkeys(frame[_ROW].itertuples(index=False, name=None)))
    common, _, places = _places(study, rows)
    lines = [["pair", *(", ".join(place) or _SCORE for place in places)]]
    for (method, following), pair in frame.groupby(["method", "reference"], sort=False):
        keys = pair[[*_ROW, "metric"]].itertuples(index=False, name=None)
        found = {
            key: f"{test.difference:+.{METRICS[test.metric]}f} {_ORDER[test.verdict]}"
            for key, test in zip(keys, pair.itertuples(), strict=True)
        }
        told = [
            " / ".join(found[*row, name] for name in METRICS) if (*row, "nll") in found else ABSENT
            for row in rows
        ]
        names = (plain.typeset(study.title("methods", each)) for each in (method, following))
        lines.append([" before ".join(names), *told])
    return _shown([*common, _SCORE], lines)


def in_short(name: str, experiment: str, root: Path) -> str:
    """Of one experiment of a published study, its first model; of several tasks, those of the
    shortest prompts."""
    study, tables = tables_of(name, root)
    entry = named(study, experiment)
    cells = cells_of(study, tables["cells"], entry)
    cells = cells[cells["model"] == cells["model"].iloc[0]]
    if cells["task"].nunique() > 1:
        cells = cells[cells["length"] == cells["length"].min()]
    return _table(study, cells, entry)


@functools.cache
def tables_of(name: str, root: Path) -> tuple[Study, dict[str, pd.DataFrame]]:
    """A published study and its CSV files, made of the archive and of nothing else."""
    study = expand(read(name, root) | {"published": published.ONLY}, root)
    archive = root / published.archive_of(name)
    with tempfile.TemporaryDirectory() as scratch:
        for path, content in bundle.contents(archive, bundle.read(archive).files).items():
            bundle.write(Path(scratch) / published.store_of(name) / path, content)
        aggregate(replace(study, root=Path(scratch)), Path(scratch) / "csv")
        wanted = ("cells", "comparisons", "pooled", "orders", "provenance")
        return study, {table: schema.read(Path(scratch) / "csv", table) for table in wanted}


def _facts(study: Study, tables: dict[str, pd.DataFrame]) -> str:
    """What was measured where, in two lines."""
    items = dict(tables["provenance"].itertuples(index=False, name=None))
    cells = tables["cells"]
    contexts = cells["n_contexts"][cells["metric"] == "nll"]
    span = "–".join(str(each) for each in sorted({contexts.min(), contexts.max()}))
    planned = len(study.cells) + study.left_out
    told = {name: value.replace("; ", " and ") for name, value in items.items()}
    return (
        f"{len(study.cells)} of {planned} planned cells, {span} contexts each, weights in"
        f" {items['dtype']}, on {told['device']} with PyTorch {told['torch']} and transformers"
        f" {told['transformers']}. Score (more is better) / NLL of the reference in nats a token"
        " (less is better)."
    )


def _table(study: Study, cells: pd.DataFrame, experiment: dict[str, Any]) -> str:
    """What all of an experiment has in common, and a table: rows are places and budgets, columns
    methods. Many methods stand in rows, each place with several budgets in a table of its own."""
    cells = cells_of(study, cells, experiment)
    measured = set(cells["method"])
    methods = [each for each in experiment["methods"] if each in measured]
    if len(methods) <= _WIDE:
        return _of_places(study, cells, methods)
    several = cells["budget"][cells["budget"] != FULL].nunique() > 1
    parts = [part for _, part in cells.groupby(_ROW[:3], sort=False)] if several else [cells]
    return "\n\n".join(_of_methods(study, part, methods) for part in parts)


def _of_places(study: Study, cells: pd.DataFrame, methods: list[str]) -> str:
    """A row for each place and budget."""
    values, rows = _values(cells)
    common, shown, places = _places(study, rows)
    lines = [[*shown, *_titles(study, methods)]]
    for row, place in zip(rows, places, strict=True):
        lines.append([*place, *(_found(values, row, method) for method in methods)])
    return _shown([*common, _told(cells)], lines)


def _of_methods(study: Study, cells: pd.DataFrame, methods: list[str]) -> str:
    """A row for each method, with the bytes that it holds."""
    values, rows = _values(cells)
    common, _, places = _places(study, rows)
    lines = [["method", *(", ".join(place) or _told(cells) for place in places), "bytes held"]]
    for method, title in zip(methods, _titles(study, methods), strict=True):
        found = [_found(values, row, method) for row in rows]
        lines.append([title, *found, _held(cells[cells["method"] == method])])
    return _shown([*common, _told(cells)], lines)


def _values(cells: pd.DataFrame) -> tuple[dict[tuple, str], list[tuple]]:
    """Numbers by place, budget and method, and the places and budgets in order."""
    groups = cells.groupby([*_ROW, "method"], sort=False)
    values = {
        key: " / ".join(_numbers(dict(zip(group["metric"], group["value"], strict=True))))
        for key, group in groups
    }
    return values, _rows(values)


def _titles(study: Study, methods: Iterable[str]) -> list[str]:
    return [plain.typeset(study.title("methods", method)) for method in methods]


def _told(cells: pd.DataFrame) -> str:
    """What the numbers are of: a text that is only read has no score."""
    return " / ".join(METRIC_TITLE[name] for name in METRICS if (cells["metric"] == name).any())


def cells_of(study: Study, cells: pd.DataFrame, experiment: dict[str, Any]) -> pd.DataFrame:
    """Those of `cells.csv` that belong to an experiment."""
    planned = {cell.key for cell in study.cells if experiment["name"] in cell.experiments}
    keys = cells[[*_ROW[:3], "method", "budget"]].itertuples(index=False, name=None)
    return cells[[key in planned for key in keys]]


def _places(study: Study, rows: list[tuple]) -> tuple[list[str], list[str], list[list[str]]]:
    """What all rows have in common; by which axes they differ; and what each has of these."""
    axes = dict(zip(_ROW, zip(*rows, strict=True), strict=True))
    shown = [name for name, found in axes.items() if len(set(found)) > 1]
    common = [axis(study, name, found[0]) for name, found in axes.items() if name not in shown]
    places = [
        [axis(study, name, value) for name, value in zip(_ROW, row, strict=True) if name in shown]
        for row in rows
    ]
    return common, shown, places


def _shown(common: list[str], lines: list) -> str:
    return f"{', '.join(common)}:\n\n{ruled(lines)}"


def ruled(lines: Iterable[Iterable[str]]) -> str:
    """A table of a head and rows."""
    head, *rows = (list(line) for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def _rows(values: Iterable[tuple]) -> list[tuple]:
    """Places with their budgets, in order; the full cache, which has none, stands in each."""
    rows = dict.fromkeys(key[:-1] for key in values)
    bounded = [row for row in rows if row[-1] != FULL]
    alone = [row for row in rows if row[-1] == FULL and not any(row[:3] == b[:3] for b in bounded)]
    places = list(dict.fromkeys(row[:3] for row in rows))
    return sorted(
        [*bounded, *alone], key=lambda row: (places.index(row[:3]), budgets.order(row[3]))
    )


def _found(values: dict[tuple, str], row: tuple, method: str) -> str:
    """A method's value in a row, or its only one at the place, if it has no budget."""
    return values.get((*row, method)) or values.get((*row[:3], FULL, method)) or ABSENT


def _held(cells: pd.DataFrame) -> str:
    """The least and the most that a method's caches allocate of what the full cache would."""
    metrics = cells.set_index([*_ROW, "metric"])["value"].unstack()
    shares = (100 * metrics["cache_bytes_allocated"] / metrics["cache_bytes_full"]).round()
    least, most = int(shares.min()), int(shares.max())
    return f"{least}%" if least == most else f"{least}% to {most}%"


def _numbers(values: dict[str, float]) -> Iterator[str]:
    for name, digits in METRICS.items():
        if name in values:
            yield f"{values[name]:.{digits}f}"


def axis(study: Study, name: str, value: Any) -> str:
    """A model, task, length or budget in words."""
    if name == "budget":
        return budgets.text(value)
    if name == "length":
        return f"{value:,} tokens"
    return plain.typeset(study.title(f"{name}s", value))
