"""How a comparison stands in a table: the difference with its interval, and the corrected p."""

from collections.abc import Iterator

import pandas as pd

from kvbudget.analysis.metrics import COMPARED
from kvbudget.analysis.statistics import ALPHA
from kvbudget.paper import latex, layout
from kvbudget.paper.latex import Latex
from kvbudget.paper.phrases.words import METRIC_TITLE, visible

#: Metrics that stand side by side in one table.
ABREAST = 2
#: What p is printed as when it is smaller.
SMALLEST = 0.001


def metrics(frame: pd.DataFrame) -> Iterator[list[str]]:
    """The metrics of some comparisons, as many to a table as are readable."""
    found = [name for name in COMPARED if name in set(frame["metric"])]
    for start in range(0, len(found), ABREAST):
        yield found[start : start + ABREAST]


def heads(names: list[str]) -> list[Latex]:
    """Headings of the columns of `cells`."""
    each = [(rf"\(\Delta\) {METRIC_TITLE[name]}", r"\(p\)") for name in names]
    return [Latex(head) for pair in each for head in pair]


def cells(group: pd.DataFrame, names: list[str]) -> Iterator[Latex]:
    """Difference and p of each metric; dashes where it is not measured."""
    by_metric = {row["metric"]: row for row in group.to_dict("records")}
    for name in names:
        row = by_metric.get(name)
        if row is None:
            yield from [Latex(latex.DASH)] * 2
            continue
        yield layout.with_interval(row["difference"], row["ci_low"], row["ci_high"], signed=True)
        p = _p(row["p_holm"])
        yield Latex(rf"\textbf{{{p}}}") if row["p_holm"] < ALPHA else p


def _p(p: float) -> Latex:
    return latex.decimal(p, 3) if p >= SMALLEST else Latex(rf"\ensuremath{{<}}{SMALLEST}")


def note(frame: pd.DataFrame) -> str:
    """What the columns mean, how many contexts there are and what they can show."""
    shown = visible(frame)
    power = (
        f" So many show a true difference of {shown} four times out of five (medians)."
        if shown
        else " So few show no difference."
    )
    return (
        r" Differences are paired by context, with 95\% intervals in brackets. \(p\) is that of a "
        r"paired permutation test after Holm's correction, bold where the difference is clear."
        rf" \(n\) = {layout.span(frame['n_contexts'])} contexts.{power}"
    )
