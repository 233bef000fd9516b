"""held.csv: quality at equal bytes that are really there.

Budgets are compared at what is planned. A cache of others may mask what it evicts and hold it all
the same; one of few bits holds less than its plan where a run computes in float32. So at the bytes
of each budget every method stands here with the largest of its caches that fit into them. One of
which none fits has no row.
"""

import pandas as pd

from kvbudget.analysis.metrics import COMPARED
from kvbudget.study.plan import FULL

PLACE = ["model", "task", "length"]
#: By how much of a budget's bytes a cache that keeps to it may be larger: positions, sums and what
#: gathers before it is evicted are up to a sixth of the smallest budgets.
SPARE = 0.2


def held_rows(cells: pd.DataFrame) -> pd.DataFrame:
    """Rows of held.csv from those of cells.csv."""
    cells = cells[cells["policy"] != FULL]
    if cells.empty:
        return cells
    quality = cells[cells["metric"].isin(COMPARED)]
    found = [
        quality.merge(_largest(part, str(level), planned), on=[*PLACE, "method", "budget"])
        for _, part in _sizes(cells).groupby(PLACE, sort=False)
        for level, planned in part.groupby("budget", sort=False)["planned"].max().items()
    ]
    return pd.concat(found, ignore_index=True)


def _sizes(cells: pd.DataFrame) -> pd.DataFrame:
    """A row a method at a place and a budget: its bytes and the share of tokens that it keeps."""
    names = {"cache_bytes_planned": "planned", "cache_bytes_allocated": "allocated", "kept": "kept"}
    sizes = cells[cells["metric"].isin(names)]
    sizes = sizes.pivot(index=[*PLACE, "method", "budget"], columns="metric", values="value")
    return sizes.rename(columns=names).reset_index()


def _largest(sizes: pd.DataFrame, level: str, planned: float) -> pd.DataFrame:
    """Of each method of a place, the cache with most tokens that some bytes can hold."""
    within = sizes[sizes["allocated"] <= (1 + SPARE) * planned]
    largest = within.loc[within.groupby("method", sort=False)["kept"].idxmax()]
    return largest.assign(level=level, planned=planned)
