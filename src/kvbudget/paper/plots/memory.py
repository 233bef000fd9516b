"""Memory against length: bytes of the cache and of the whole process."""

from matplotlib.figure import Figure

from kvbudget.paper import shown
from kvbudget.paper.plots import over_length
from kvbudget.paper.plots.over_length import Measure
from kvbudget.paper.source import Source
from kvbudget.study.plan import FULL

EMPTY = "no cell"
COLUMNS = {
    "cache_bytes_allocated": Measure("cache_bytes_allocated", "cache (MiB)"),
    "peak_cuda_bytes": Measure("peak_cuda_bytes", "peak device (MiB)", from_zero=False),
    "peak_rss_bytes": Measure("peak_rss_bytes", "peak process (MiB)", from_zero=False),
}


def draw(src: Source) -> Figure | None:
    """The full cache, and the other methods at one budget."""
    frame = src.wide()
    frame = frame[frame["method"].isin(src.study.main_methods)]
    frame = frame[(frame["policy"] == FULL) | (frame["budget"] == shown.budget(src))]
    columns = [name for name in COLUMNS if name in frame]
    # Peaks of two machines are no one line.
    peaks = [name for name in columns if name.startswith("peak_")]
    alone = frame.groupby("model")["machine"].transform("nunique") == 1
    frame[peaks] = frame[peaks].where(alone)
    # Peaks are the worst over tasks, so that a task with shorter questions cannot hide one.
    frame = frame.groupby(["model", "method", "length"], sort=False)[columns].max() / 2**20
    measures = [COLUMNS[name] for name in columns]
    return over_length.draw(src.study, frame.reset_index(), measures)
