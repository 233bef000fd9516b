"""What sentences share: how metrics, bits, budgets and verdicts are called, counts, ranges."""

import math
from collections.abc import Iterable

import pandas as pd

from kvbudget.analysis.metrics import METRICS
from kvbudget.analysis.statistics import ALPHA, least_p
from kvbudget.paper import latex
from kvbudget.paper.budgets import ALL_KEPT
from kvbudget.paper.latex import Latex
from kvbudget.paper.source import Source
from kvbudget.study.plan import AXES

METRIC_TITLE = {"score": "score", "nll": "NLL", "choice": "forced choice"}
#: A paragraph names so many places; the appendix has them all.
SHOWN = 8
#: Methods that a sentence names.
NAMED = 5
NO_OURS = Latex(
    "This study holds no headline comparison of Head-Aware with a baseline, so nothing is claimed "
    "here."
)
NO_CALIBRATION = Latex("This study holds no calibration.")
_BITS = {"16": "sixteen bits", "8": "eight bits", "4": "four bits", "2": "two bits"}


def count(number: int, one: str) -> str:
    """A number and its noun: `1 context`, `6 contexts`."""
    return f"{number:,} {one if number == 1 else one + 's'}"


def none(number: int) -> str:
    """A number that may be `none`."""
    return f"{number:,}" if number else "none"


def span(low: float, high: float, digits: int = 2) -> str:
    """`0.10 to 0.20`, or one number where both print alike."""
    a, b = latex.decimal(low, digits), latex.decimal(high, digits)
    return a if a == b else f"{a} to {b}"


def percent(share: float) -> str:
    """`81\\%`."""
    return f"{100 * share:.0f}\\%"


def bits(name: str) -> str:
    """`four bits`; of keys and values that differ, `4 bits for keys and 2 for values`."""
    if name in _BITS:
        return _BITS[name]
    keys, values = name.split("/")
    return f"{keys} bits for keys and {values} for values"


def at(budget: str, all_kept: bool) -> Latex:
    """Where a budget is: `at a budget of 20\\%`."""
    if all_kept:
        return Latex(f"where Head-Aware evicts nothing ({ALL_KEPT})")
    return Latex(f"at a budget of {latex.budget(budget)}{' tokens' if budget.isdigit() else ''}")


def is_clear(row: dict) -> str:
    """What the corrected test says of a difference."""
    return "which is clear" if row["verdict"] != "unclear" else "which is not clear"


def ahead(row: dict) -> bool:
    """Whether the method is better than its reference, clearly or not."""
    return _sign(row["metric"]) * row["difference"] > 0


def gap(row: dict) -> str:
    """How far the two are apart, towards the better: `0.21 (0.10 to 0.33)`, without a sign."""
    sign = _sign(row["metric"]) * (1 if ahead(row) else -1)
    low, high = sorted((sign * row["ci_low"], sign * row["ci_high"]))
    interval = "" if math.isnan(low) else f" ({latex.decimal(low)} to {latex.decimal(high)})"
    return f"{latex.decimal(abs(row['difference']))}{interval}"


def _sign(metric: str) -> int:
    return 1 if METRICS[metric].higher_is_better else -1


def title(src: Source, method: str) -> Latex:
    """A method's name in print."""
    return latex.title(src.study, "methods", method)


def with_model(src: Source, model: str) -> str:
    """`with A ` before a place, where the study has several models."""
    if len(src.study.models) == 1:
        return ""
    return f"with {latex.title(src.study, 'models', model)} "


def in_turn(clauses: Iterable[tuple[str, str]]) -> str:
    """Clauses of one shape, each as it stands first and in short: `A is better than B in 1 of 2;
    than C in 2 of 3`."""
    return "; ".join(short if number else whole for number, (whole, short) in enumerate(clauses))


def devices_of(src: Source) -> pd.Series:
    """The device that each cell was measured on, by model, task, length, method and budget."""
    cells = src.cells.drop_duplicates(list(AXES)).set_index(list(AXES))
    return cells["machine"].str.partition(",")[0]


def capital(sentence: str) -> str:
    """A sentence that begins as one."""
    return sentence[:1].upper() + sentence[1:]


def decidable(frame: pd.DataFrame) -> pd.Series:
    """Whether each comparison has contexts enough for a verdict in its family."""
    return frame["n_contexts"].map(least_p) * frame["family"] < ALPHA


def visible(frame: pd.DataFrame) -> Latex:
    """The true differences that comparisons would show, in the median, a metric after the other."""
    medians = frame.groupby("metric")["detectable"].median().dropna()
    return latex.listing(
        Latex(f"{latex.decimal(medians[metric])} in {name}")
        for metric, name in METRIC_TITLE.items()
        if metric in medians
    )
