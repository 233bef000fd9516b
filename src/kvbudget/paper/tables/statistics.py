"""The paired comparisons of our method, and of its variants with it."""

from collections.abc import Iterator

import pandas as pd

from kvbudget.paper import latex, layout
from kvbudget.paper.latex import Latex
from kvbudget.paper.layout import Row
from kvbudget.paper.source import Source
from kvbudget.paper.template import render

#: What stands for the task where all are taken together.
_TOGETHER = "all headline tasks"


def text(src: Source) -> str:
    """LaTeX of three groups of floats: pooled, against each reference, and of the variants."""
    ours = src.study.ours
    frame = src.comparisons
    variants = frame[frame["kind"] == "ablation"]
    pooled = src.table("pooled").assign(task=_TOGETHER, headline=True)
    pooled = pooled.rename(columns={"places": "length"})
    title = latex.title(src.study, "methods", ours) if ours else ""
    common = (
        r" Differences are paired by context, with 95\% bootstrap intervals in brackets, \(d\) is "
        r"the difference over its standard deviation, and \(p\) that of a paired permutation test "
        r"after Holm's correction over all comparisons of the same kind and metric, the pooled "
        r"ones by themselves. "
        rf"\(n\) = {layout.span(frame['n_contexts'])} contexts. "
        r"\(\dagger\): the full cache scores below one half, so the row is no headline."
    )
    floats = [
        *_floats(
            src,
            _against(pooled, ours),
            "reference",
            rf"{title} minus each reference, over all headline tasks and lengths (places) "
            rf"together; each context counts once.{common}",
            place="places",
        ),
        *_floats(
            src, _against(frame, ours), "reference", rf"{title} minus each reference.{common}"
        ),
        *_floats(src, variants, "method", rf"Each variant minus {title}.{common}"),
    ]
    for number, entry in enumerate(floats, 1):
        entry["label"] = f"tab:statistics-{number}"
    return render("statistics.tex.j2", notes=src.notes(), floats=floats)


def _against(frame: pd.DataFrame, ours: str | None) -> pd.DataFrame:
    return frame[(frame["method"] == ours) & frame["kind"].isin(["full", "baseline"])]


def _floats(
    src: Source, frame: pd.DataFrame, named: str, caption: str, place: str = "tokens"
) -> Iterator[dict]:
    rows = []
    for values, group in frame.groupby(["model", "task", "length", "budget", named], sort=False):
        model, task, length, budget, method = values
        mark = "" if group["headline"].all() else r"\(^\dagger\)"
        cells = [
            Latex(layout.named(src.study, "tasks", task) + mark),
            Latex(f"{length:,}"),
            latex.budget(budget),
            layout.named(src.study, "methods", method),
            *_tests(group),
        ]
        rows.append(Row(latex.title(src.study, "models", model), cells))
    for number, piece in enumerate(layout.by_height(rows)):
        yield {
            "rows": piece,
            "head": {"reference": "reference", "method": "variant"}[named],
            "place": place,
            "caption": Latex(caption + (" (Continued.)" if number else "")),
        }


def _tests(group: pd.DataFrame) -> Iterator[Latex]:
    """Difference, effect and p of each metric; dashes where it is not measured."""
    by_metric = {row["metric"]: row for row in group.to_dict("records")}
    for metric in ("score", "nll"):
        row = by_metric.get(metric)
        if row is None:
            yield from [Latex(latex.DASH)] * 3
            continue
        yield layout.with_interval(row["difference"], row["ci_low"], row["ci_high"], signed=True)
        yield latex.signed(row["effect"])
        yield latex.decimal(row["p_holm"], 3)
