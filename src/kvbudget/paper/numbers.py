r"""numbers.tex: every number of the prose as a macro `\res{key}`; an unknown key stops LaTeX.

Keys of cells are `model/task/length/method/budget/metric`, with `/low`, `/high` and `/n` for the
interval and the contexts; of comparisons
`experiment/model/task/length/budget/method/vs/reference/metric` with `/low`, `/high`, `/p` and
`/verdict`. Derived keys (`study/…`, `machine/…`, `summary/…`) are those of `phrases`; they exist in
every study, so the sections use these.
"""

from collections.abc import Iterator

import pandas as pd

from kvbudget.errors import UserError
from kvbudget.paper import latex, shown, times
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases import (
    ablation,
    claims,
    cost,
    heads,
    places,
    quality,
    rigour,
    setup,
    standing,
)
from kvbudget.paper.source import Source
from kvbudget.paper.template import render


def text(src: Source) -> str:
    """LaTeX of all numbers.

    Args:
        src: the study and its CSV files.

    Raises:
        UserError: two numbers have the same key.
    """
    numbers: dict[str, Latex] = {}
    for key, value in _all(src):
        if key in numbers:
            raise UserError(f"two numbers have the key {key}; rename a model, task or method")
        numbers[key] = value
    return render(
        "numbers.tex.j2",
        notes=src.notes(),
        numbers={Latex(key): value for key, value in numbers.items()},
        draft=src.draft,
        development=src.development,
        ablated=(src.table("pooled")["kind"] == "ablation").any(),
        lengths=not shown.over_lengths(src).empty,
        tasks=shown.tasks(src) is not None,
        timed=not times.ratios(src).empty,
    )


def _all(src: Source) -> Iterator[tuple[str, Latex]]:
    yield from _cells(src)
    yield from _comparisons(src)
    for part in (setup, standing, claims, quality, places, ablation, rigour, cost, heads):
        yield from part.derived(src)


def _cells(src: Source) -> Iterator[tuple[str, Latex]]:
    """Every metric of every cell."""
    for row in src.cells.to_dict("records"):
        name = row["metric"]
        axes = (row["model"], row["task"], row["length"], row["method"], row["budget"])
        base = latex.key(*axes, name)
        yield base, latex.metric(name, row["value"])
        if not pd.isna(row["ci_low"]):
            yield f"{base}/low", latex.metric(name, row["ci_low"])
            yield f"{base}/high", latex.metric(name, row["ci_high"])
        yield f"{base}/n", latex.decimal(row["n_contexts"], 0)


def _comparisons(src: Source) -> Iterator[tuple[str, Latex]]:
    """Every paired difference."""
    for row in src.comparisons.to_dict("records"):
        axes = ("experiment", "model", "task", "length", "budget", "method")
        base = latex.key(*(row[name] for name in axes), "vs", row["reference"], row["metric"])
        yield base, latex.signed(row["difference"])
        yield f"{base}/low", latex.signed(row["ci_low"])
        yield f"{base}/high", latex.signed(row["ci_high"])
        yield f"{base}/p", latex.decimal(row["p_holm"], 3)
        yield f"{base}/verdict", latex.escape(row["verdict"])
