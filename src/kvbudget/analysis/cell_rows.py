"""cells.csv: one row a (cell, metric)."""

import numpy as np
import pandas as pd

from kvbudget.analysis import streaming_metrics
from kvbudget.analysis.statistics import mean_interval
from kvbudget.study.plan import FULL
from kvbudget.study.records import Cell

QUALITY = ("score", "nll")
MEMORY = (
    "cache_bytes_planned",
    "cache_bytes_allocated",
    "cache_bytes_full",
    "cache_bytes_sliding",
    "cache_bytes_target",
    "peak_rss_bytes",
    "peak_cuda_bytes",
)
TIMING = ("prefill_s", "decode_ms_per_token")


def cell_rows(cells: list[Cell], seed: int) -> pd.DataFrame:
    """Quality with intervals over contexts; BLEU and costs are one number a cell."""
    rows = []
    full: dict[tuple, Cell] = {}
    for cell in cells:
        if cell.planned.policy == FULL:
            full.setdefault(cell.planned.key[:3], cell)
    for cell in cells:
        axes = cell.planned.axes
        axes |= {"policy": cell.planned.policy, "n_samples": len(cell.samples)}
        axes["n_contexts"] = len({s["context_id"] for s in cell.samples})
        quality = {metric: list(cell.by_context(metric).values()) for metric in QUALITY}
        single = {name: cell.record["memory"].get(name) for name in MEMORY}
        single |= {name: cell.record["timing"].get(name) for name in TIMING}
        if cell.planned.kind == streaming_metrics.KIND:
            quality |= streaming_metrics.by_context(cell, full.get(cell.planned.key[:3]))
            single["bleu"] = streaming_metrics.bleu(cell)
        for metric, values in quality.items():
            if values:
                e = mean_interval(np.array(values), seed)
                rows.append(
                    {**axes, "metric": metric, "value": e.value, "ci_low": e.low, "ci_high": e.high}
                )
        single["prompt_tokens"] = float(np.mean([s["prompt_tokens"] for s in cell.samples]))
        rows += [
            {**axes, "metric": name, "value": value, "ci_low": np.nan, "ci_high": np.nan}
            for name, value in single.items()
            if value is not None
        ]
    return pd.DataFrame(rows)
