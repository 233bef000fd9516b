"""Intervals and tests whose unit is the context, because questions of one context are not
independent: they are asked of the same compressed cache."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 9999
LEVEL = 0.95
POWER = 0.8
#: Fewer pairs than this can differ all in one direction by chance more often than the level allows
#: (2 / 2^5 > 0.05), yet their bootstrap interval would be clear of zero: no verdict from them.
LEAST_CONTEXTS = 6


@dataclass(frozen=True)
class Estimate:
    """A mean over contexts with its interval; NaN bounds where one context gives none."""

    value: float
    low: float
    high: float
    n: int


def mean_interval(values: np.ndarray, seed: int) -> Estimate:
    """Mean of `(contexts,)` values with a 95% percentile bootstrap over contexts.

    The percentile interval is used because the bias-corrected one is undefined for the all-equal
    samples that a score of 0 or 1 often gives.
    """
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, np.nan, np.nan, len(values))
    if np.ptp(values) == 0:
        return Estimate(mean, mean, mean, len(values))
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), len(values))


def effect_size(differences: np.ndarray) -> float:
    """Cohen's d of paired `(contexts,)` differences (Cohen, 1988): mean over standard deviation.

    NaN where they do not vary.
    """
    deviation = _deviation(differences)
    return float(np.mean(differences)) / deviation if deviation else np.nan


def detectable(differences: np.ndarray) -> float:
    """The least true difference that as many contexts, varying as these do, would show.

    A two-sided paired t test at the level of the intervals finds it with a power of about `POWER`
    (quantiles of t in place of those of its non-central form). NaN where nothing varies.
    """
    n, deviation = len(differences), _deviation(differences)
    if not deviation:
        return np.nan
    quantiles = stats.t.ppf([(1 + LEVEL) / 2, POWER], n - 1)
    return float(quantiles.sum() * deviation / np.sqrt(n))


def _deviation(differences: np.ndarray) -> float:
    """Standard deviation; 0 for one value, and for equal ones whatever rounding says."""
    varies = len(differences) > 1 and np.ptp(differences) > 0
    return float(np.std(differences, ddof=1)) if varies else 0.0


def paired_p(a: np.ndarray, b: np.ndarray, seed: int) -> float:
    """Two-sided p of a paired permutation test over contexts, exact when there are few."""
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    if len(difference) < 2 or not difference.any():
        return 1.0
    result = stats.permutation_test(
        (np.asarray(a, dtype=float), np.asarray(b, dtype=float)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    return float(min(1.0, result.pvalue))


def holm(p: np.ndarray) -> np.ndarray:
    """p values adjusted by Holm's step-down procedure (Holm, 1979)."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = (len(p) - np.arange(len(p))) * p[order]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def verdict(estimate: Estimate, higher_is_better: bool) -> str:
    """`better` or `worse` when the interval is clear of zero, else `unclear`.

    Always `unclear` below `LEAST_CONTEXTS`.
    """
    if estimate.n < LEAST_CONTEXTS:
        return "unclear"
    low, high = (
        (estimate.low, estimate.high) if higher_is_better else (-estimate.high, -estimate.low)
    )
    if low > 0:
        return "better"
    return "worse" if high < 0 else "unclear"
