"""Speed against length, as a ratio to the full cache within one run on one machine."""

from matplotlib.figure import Figure

from kvbudget.paper import shown, times
from kvbudget.paper.plots import over_length
from kvbudget.paper.plots.over_length import Measure
from kvbudget.paper.source import Source

EMPTY = "no full-cache cell beside a method that evicts on one machine, or no decode times"


def draw(src: Source) -> Figure | None:
    """Decode speed and prefill time over the full cache's, mean over tasks that decode."""
    frame = times.ratios(src)
    frame = frame[frame["method"].isin(src.study.main_methods)]
    frame = frame[frame["budget"] == shown.budget(src)]
    means = frame.groupby(["model", "method", "length"], sort=False)[["decode", "prefill"]].mean()
    measures = [
        Measure("decode", "decode speed\n(full cache = 1)", reference=1.0),
        Measure("prefill", "prefill time\n(full cache = 1)", reference=1.0),
    ]
    return over_length.draw(src.study, means.reset_index(), measures)
