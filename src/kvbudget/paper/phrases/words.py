"""What sentences share: how metrics are called, counts, verdicts."""

import pandas as pd

from kvbudget.paper import latex
from kvbudget.paper.latex import Latex

METRIC_TITLE = {"score": "score", "nll": "NLL"}
ALPHA = 0.05
#: A sentence names so many places; the appendix has them all.
SHOWN = 12
NO_OURS = Latex(
    "This study holds no such headline comparison of Head-Aware, so nothing is claimed here."
)


def count(number: int, one: str) -> str:
    """A number and its noun: `1 context`, `6 contexts`."""
    return f"{number:,} {one if number == 1 else one + 's'}"


def span(low: float, high: float, digits: int = 2) -> str:
    """`0.10 to 0.20`, or one number where both print alike."""
    a, b = latex.decimal(low, digits), latex.decimal(high, digits)
    return a if a == b else f"{a} to {b}"


def tally(frame: pd.DataFrame) -> dict[str, int]:
    """How often each verdict is among comparisons, `all` of them, and those that pass `holm`."""
    counts = frame["verdict"].value_counts().to_dict()
    out = {name: int(counts.get(name, 0)) for name in ("better", "worse", "unclear")}
    return out | {"all": len(frame), "holm": int((frame["p_holm"] < ALPHA).sum())}


def shortened(texts: list[str]) -> str:
    """A list of places that ends where the appendix must go on."""
    rest = len(texts) - SHOWN
    more = f"; and {rest} more in the appendix" if rest > 0 else ""
    return "; ".join(texts[:SHOWN]) + more
