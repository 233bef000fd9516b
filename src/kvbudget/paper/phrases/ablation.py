"""How the variants of Head-Aware compare with it."""

from collections.abc import Iterator

import pandas as pd

from kvbudget.paper import latex
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import ALPHA, METRIC_TITLE, count, tally
from kvbudget.paper.source import Source


def derived(src: Source) -> Iterator[tuple[str, Latex]]:
    """One sentence a metric."""
    yield "summary/ablation", _ablation(src)


def _ablation(src: Source) -> Latex:
    frame = src.comparisons
    frame = frame[(frame["kind"] == "ablation") & frame["headline"]]
    if frame.empty:
        return Latex("This study holds no headline comparison of a variant with Head-Aware.")
    parts = {metric: frame[frame["metric"] == metric] for metric in METRIC_TITLE}
    return Latex(" ".join(_changed(src, p, metric) for metric, p in parts.items() if len(p)))


def _changed(src: Source, frame: pd.DataFrame, metric: str) -> str:
    """Which variants are better or worse, in how many of their comparisons, and by how much."""
    named: dict[str, list[Latex]] = {"better": [], "worse": []}
    for method in [m for m in src.study.methods if m in set(frame["method"])]:
        part = frame[frame["method"] == method]
        counts, mean = tally(part), latex.signed(float(part["difference"].mean()))
        for verdict, names in named.items():
            if counts[verdict]:
                title = latex.title(src.study, "methods", method)
                often = f"{counts[verdict]} of {counts['all']}, " if counts["all"] > 1 else ""
                names.append(Latex(rf"\emph{{{title}}} ({often}{mean})"))
    found = [f"{verdict}: {latex.listing(names)}" for verdict, names in named.items() if names]
    return (
        f"In {METRIC_TITLE[metric]}, {count(frame['method'].nunique(), 'variant')} in "
        f"{count(len(frame), 'comparison')}: {'; '.join(found) or 'all unclear'}"
        f"{'; the rest unclear' if found else ''} (mean differences; {tally(frame)['holm']} "
        rf"with Holm-corrected \(p<{ALPHA}\))."
    )
