"""What each variant of Head-Aware gains or loses, a column for each budget and metric.

Of the experiment with most variants; the appendix has the others.
"""

from collections.abc import Iterator

import pandas as pd

from kvbudget.analysis.metrics import METRICS
from kvbudget.paper import budgets, findings, latex, layout
from kvbudget.paper.latex import Latex
from kvbudget.paper.layout import COLUMN, INTERVAL, NAMES, NUMBER, PAGE, Row
from kvbudget.paper.phrases.words import METRIC_TITLE
from kvbudget.paper.source import Source
from kvbudget.paper.template import render

SHOWN = ("score", "nll")
#: Budgets that stand side by side.
ABREAST = 4


def text(src: Source) -> str:
    """LaTeX of the variants' pooled differences, by as many budgets as fit side by side."""
    frame = src.table("pooled")
    frame = frame[(frame["kind"] == "ablation") & frame["metric"].isin(SHOWN)]
    frame = frame[frame["experiment"] == findings.largest(frame)]
    floats = [
        piece
        for named in layout.chunks(sorted(set(frame["budget"]), key=budgets.order), ABREAST)
        for piece in _floats(src, frame[frame["budget"].isin(named)], list(named))
    ]
    for number, entry in enumerate(floats, 1):
        entry["label"] = f"tab:ablation-{number}"
    return render("ablation.tex.j2", notes=src.notes(), floats=floats)


def _floats(src: Source, frame: pd.DataFrame, named: list[str]) -> Iterator[dict]:
    metrics = [metric for metric in SHOWN if metric in set(frame["metric"])]
    columns = [(budget, metric) for budget in named for metric in metrics]
    intervals = NAMES + len(columns) * INTERVAL <= PAGE
    each = INTERVAL if intervals else NUMBER
    wide = NAMES + len(columns) * each > COLUMN
    for rows in layout.by_height(list(_rows(src, frame, columns, intervals))):
        yield {
            "wide": wide,
            "budgets": [latex.budget(budget) for budget in named],
            "heads": [rf"\(\Delta\) {METRIC_TITLE[metric]}" for metric in metrics],
            "rows": rows,
            "caption": _caption(src, frame, intervals),
        }


def _rows(
    src: Source, frame: pd.DataFrame, columns: list[tuple[str, str]], intervals: bool
) -> Iterator[Row]:
    for model, part in frame.groupby("model", sort=False):
        group = latex.title(src.study, "models", str(model))
        for method, mine in part.groupby("method", sort=False):
            found = {(row["budget"], row["metric"]): row for row in mine.to_dict("records")}
            cells = [_cell(found.get(column), intervals) for column in columns]
            title = layout.named(src.study, "methods", str(method))
            yield Row(group, [title, *cells])


def _cell(row: dict | None, intervals: bool) -> Latex:
    if row is None:
        return Latex(latex.DASH)
    number = latex.signed(row["difference"])
    if row["verdict"] != "unclear":
        number = Latex(rf"\textbf{{{number}}}")
    if not intervals or pd.isna(row["ci_low"]):
        return number
    low, high = latex.decimal(row["ci_low"]), latex.decimal(row["ci_high"])
    return Latex(rf"{number}\bounds{{{low}}}{{{high}}}")


def _caption(src: Source, frame: pd.DataFrame, intervals: bool) -> Latex:
    ours = latex.title(src.study, "methods", src.study.ours)
    higher = [METRIC_TITLE[name] for name in SHOWN if METRICS[name].higher_is_better]
    where = "in brackets" if intervals else r"in \cref{sec:comparisons}"
    return Latex(
        rf"Each variant minus {ours}, over all headline tasks and lengths together (places: "
        rf"{layout.span(frame['places'])}). Bold: clear by a paired permutation test after Holm's "
        rf"correction. A negative difference in {latex.listing(higher)} and a positive one in NLL "
        "is a loss. "
        rf"\(n\) = {layout.span(frame['n_contexts'])} contexts; 95\% intervals {where}."
    )
