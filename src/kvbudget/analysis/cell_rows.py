"""cells.csv: one row a metric of what was measured at a place."""

import numpy as np
import pandas as pd

from kvbudget.analysis import streaming_metrics
from kvbudget.analysis.measured import Measured
from kvbudget.analysis.metrics import HEADLINE_SCORE, METRICS, above_chance
from kvbudget.analysis.statistics import Bounds, mean_interval

MEMORY = (
    "cache_bytes_planned",
    "cache_bytes_claimed",
    "cache_bytes_allocated",
    "cache_bytes_full",
    "cache_bytes_sliding",
    "cache_bytes_target",
    "cache_tokens_on_top",
    "cache_bytes_on_top",
    "peak_rss_bytes",
    "peak_cuda_bytes",
)
TIMING = ("prefill_s", "decode_ms_per_token")
SHARE: Bounds = (0.0, 1.0)
LIKELIHOOD: Bounds = (0.0, np.inf)  # a negative logarithm


def cell_rows(groups: list[Measured], seed: int) -> pd.DataFrame:
    """Quality with intervals over contexts; BLEU, shares kept and costs are one number each."""
    full = full_caches(groups)
    rows = []
    for each in groups:
        reference = full.get(each.planned.key[:3])
        axes = each.planned.axes | {
            "policy": each.planned.policy,
            "bits": each.bits,
            "all_kept": each.all_kept,
            "headline": is_headline(reference),
            "machine": each.machine,
            "seeds": len(each.cells),
            "n_samples": len(each.cells[0].samples),
        }
        rows += [axes | row for row in _quality(each, reference, seed)]
        rows += [
            axes | {"metric": name, "value": value, "n_contexts": len(each.by_context("nll"))}
            for name, value in _single(each).items()
            if value is not None
        ]
    return pd.DataFrame(rows)


def full_caches(groups: list[Measured]) -> dict[tuple, Measured]:
    """The first full cache of each (model, task, length)."""
    found: dict[tuple, Measured] = {}
    for each in groups:
        if each.full:
            found.setdefault(each.planned.key[:3], each)
    return found


def is_headline(full: Measured | None) -> bool:
    """Whether the full cache, chance taken off, scores enough for a place to count, or has no
    score there."""
    if full is None:
        return False
    scores = list(full.by_context("score").values())
    return not scores or above_chance(float(np.mean(scores)), full.chance) >= HEADLINE_SCORE


def _quality(each: Measured, full: Measured | None, seed: int) -> list[dict]:
    rows = []
    for name, metric in METRICS.items():
        values = list(each.by_context(name).values())
        means = [np.mean(list(of.values())) for of in each.of_seeds(name) if of]
        rows.append(_row(name, values, SHARE if metric.share else LIKELIHOOD, seed, means))
    if each.planned.kind == streaming_metrics.KIND:
        for name, values in streaming_metrics.by_context(each, full).items():
            bounds = SHARE if name == "agreement" else None
            rows.append(_row(name, values, bounds, seed, []))
    return [row for row in rows if row]


def _row(
    name: str, values: list[float], bounds: Bounds | None, seed: int, of_seeds: list[float]
) -> dict:
    """A metric with its interval and the range of seeds; nothing where no context has it."""
    if not values:
        return {}
    estimate = mean_interval(np.array(values), seed, bounds)
    return {
        "metric": name,
        "value": estimate.value,
        "ci_low": estimate.low,
        "ci_high": estimate.high,
        "seed_low": min(of_seeds, default=np.nan),
        "seed_high": max(of_seeds, default=np.nan),
        "n_contexts": estimate.n,
    }


def _single(each: Measured) -> dict[str, float | None]:
    """What is one number and has no interval."""
    found = {name: each.cost("memory", name) for name in MEMORY}
    found |= {name: each.cost("timing", name) for name in TIMING}
    found |= {"kept": each.kept, "chance": each.chance}
    samples = each.cells[0].samples
    found["prompt_tokens"] = float(np.mean([sample["prompt_tokens"] for sample in samples]))
    if each.planned.kind == streaming_metrics.KIND:
        found["bleu"] = streaming_metrics.bleu(each.cells[0])
    return found
