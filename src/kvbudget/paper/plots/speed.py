"""Speed against length, as a ratio to the full cache within one run on one machine."""

from matplotlib.figure import Figure

from kvbudget.paper.plots import over_length
from kvbudget.paper.plots.over_length import Measure
from kvbudget.paper.source import Source
from kvbudget.study.plan import FULL

EMPTY = "no full-cache cell beside a method that evicts, or no decode times"


def draw(src: Source) -> Figure | None:
    """Decode speed and prefill time over the full cache's, mean over tasks that decode."""
    frame = src.wide()
    if "decode_ms_per_token" not in frame:
        return None
    frame = frame[frame["method"].isin(src.study.main_methods)]
    frame = frame.dropna(subset="decode_ms_per_token")
    budget = over_length.common_budget(frame)
    axes = ["model", "task", "length"]
    full = frame[frame["policy"] == FULL].set_index(axes)[["decode_ms_per_token", "prefill_s"]]
    mine = frame[(frame["policy"] != FULL) & (frame["budget"] == budget)].set_index(axes)
    joined = mine.join(full, suffixes=("", "_full"), how="inner").reset_index()
    joined["decode"] = joined["decode_ms_per_token_full"] / joined["decode_ms_per_token"]
    joined["prefill"] = joined["prefill_s"] / joined["prefill_s_full"]
    means = joined.groupby(["model", "method", "length"], sort=False)[["decode", "prefill"]].mean()
    measures = [
        Measure("decode", "decode speed\n(full cache = 1)", reference=1.0),
        Measure("prefill", "prefill time\n(full cache = 1)", reference=1.0),
    ]
    return over_length.draw(src.study, means.reset_index(), measures)
