"""Tests and intervals whose unit is the context, because questions of one context are not
independent: they are asked of the same compressed cache.

A verdict comes from the test alone: a paired permutation test, corrected within its family. The
interval beside it says how large the effect may be. `tests/unit/test_statistics.py` simulates how
often intervals cover the truth and how often the test finds what is not there.
"""

import functools
from dataclasses import dataclass

import numpy as np
from scipy import special

#: Draws where sign flips are too many to enumerate: up to fourteen contexts are exact.
FLIPS = 19_999
#: Draws of the bootstrap.
RESAMPLES = 4999
#: Resamples that are held in memory at once.
BATCH = 1000
LEVEL = 0.95
ALPHA = 1 - LEVEL
POWER = 0.8
#: Below so many contexts no interval was seen to hold its level, and none is given.
LEAST_CONTEXTS = 6
#: By how much of the sum of their sizes two sums of the same values may differ by rounding.
ROUNDING = 1e-12
#: How far from the mean the two made-up contexts lie that widen an interval of shares.
PSEUDO = 0.25

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A mean over contexts with its interval; NaN bounds where there are too few contexts."""

    value: float
    low: float
    high: float
    n: int


def mean_interval(
    values: np.ndarray, seed: int, bounds: Bounds | None, resamples: int = RESAMPLES
) -> Estimate:
    """Mean of `(contexts,)` values with a 95% interval.

    Args:
        values: one a context.
        seed: of the resampling.
        bounds: the least and the largest possible value; where both are finite, values are shares
            or differences of shares. None for what has no bounds.
        resamples: draws of the bootstrap.
    """
    values = np.asarray(values, dtype=float)
    mean, n = float(values.mean()), len(values)
    if n < LEAST_CONTEXTS:
        return Estimate(mean, np.nan, np.nan, n)
    least, most = bounds or (-np.inf, np.inf)
    if np.isfinite(most - least):
        half = _half_of_shares(values)
        low, high = mean - half, mean + half
    elif np.ptp(values) == 0:
        low = high = mean
    else:
        low, high = _studentised(values, resamples, np.random.default_rng(seed))
        half = _quantile(n) * _error(values)
        low, high = min(low, mean - half), max(high, mean + half)
    return Estimate(mean, max(least, low), min(most, high), n)


def _half_of_shares(values: np.ndarray) -> float:
    """Half the t interval of values with few levels, which often are all alike in a sample.

    Two made-up contexts, `PSEUDO` above and below the mean, keep it from closing there, as Agresti
    and Coull's (1998) made-up trials do for a proportion.
    """
    n = len(values)
    squares = np.sum((values - values.mean()) ** 2) + 2 * PSEUDO**2
    return float(_quantile(n) * np.sqrt(squares / (n + 1) / n))


def _studentised(
    values: np.ndarray, resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """The studentised bootstrap (Efron and Tibshirani, 1993, section 12.5), which follows skew.

    Resamples of one value alone have no t and are left out. `mean_interval` joins it with the t
    interval: with six to twelve contexts each alone is at times too narrow on one side.
    """
    n, mean = len(values), values.mean()
    ts = []
    for start in range(0, resamples, BATCH):
        drawn = values[rng.integers(0, n, (min(BATCH, resamples - start), n))]
        errors = drawn.std(axis=1, ddof=1) / np.sqrt(n)
        varied = np.ptp(drawn, axis=1) > 0
        ts.append((drawn.mean(axis=1)[varied] - mean) / errors[varied])
    low, high = np.quantile(np.concatenate(ts), [ALPHA / 2, 1 - ALPHA / 2])
    error = _error(values)
    return float(mean - high * error), float(mean - low * error)


def _quantile(n: int) -> float:
    return float(special.stdtrit(n - 1, 1 - ALPHA / 2))


def _error(values: np.ndarray) -> float:
    """Standard error of a mean."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def effect_size(differences: np.ndarray) -> float:
    """Cohen's d of paired `(contexts,)` differences (Cohen, 1988): mean over standard deviation.

    NaN where they do not vary.
    """
    deviation = _deviation(differences)
    return float(np.mean(differences)) / deviation if deviation else np.nan


def detectable(differences: np.ndarray, family: int) -> float:
    """The least true difference that as many contexts, varying as these do, would show.

    A two-sided paired t test finds it with a power of about `POWER` (quantiles of t in place of
    those of its non-central form) at the level that Holm's correction asks of the best of a family
    of so many comparisons. NaN where nothing varies, and where so few contexts can show nothing.
    """
    n, deviation = len(differences), _deviation(differences)
    if not deviation or least_p(n) * family >= ALPHA:
        return np.nan
    quantiles = special.stdtrit(n - 1, [1 - ALPHA / family / 2, POWER])
    return float(quantiles.sum() * deviation / np.sqrt(n))


def _deviation(differences: np.ndarray) -> float:
    """Standard deviation; 0 for one value, and for equal ones whatever rounding says."""
    varies = len(differences) > 1 and np.ptp(differences) > 0
    return float(np.std(differences, ddof=1)) if varies else 0.0


def least_p(n: int) -> float:
    """The smallest p that the test can give with `n` contexts."""
    return 2 / min(2.0**n, FLIPS + 1)


def paired_p(differences: np.ndarray, seed: int) -> float:
    """Two-sided p of a paired permutation test: signs of `(contexts,)` differences are flipped.

    All flips are tried where these are at most `FLIPS`, else so many are drawn, and the signs as
    they are count as one more (Phipson and Smyth, 2010). The same as
    `scipy.stats.permutation_test`, whose loop over flips takes ten times as long: seconds for the
    comparisons of a study.
    """
    differences = np.asarray(differences, dtype=float)
    n = len(differences)
    if n < 2 or not differences.any():
        return 1.0
    observed, sums = differences.sum(), _signs(n, seed) @ differences
    # Sums that are equal but for their rounding are equal.
    slack = ROUNDING * np.abs(differences).sum()
    beyond = min((sums <= observed + slack).sum(), (sums >= observed - slack).sum())
    return float(min(1.0, 2 * (beyond / 2**n if _exact(n) else (beyond + 1) / (FLIPS + 1))))


def _exact(n: int) -> bool:
    """Whether all flips of so many signs are tried."""
    return 2**n <= FLIPS


@functools.lru_cache(maxsize=4)  # the comparisons of a study share them
def _signs(n: int, seed: int) -> np.ndarray:
    """The flips that are tried: `(flips, contexts)` of 1 and -1."""
    if _exact(n):
        flipped = np.arange(2**n)[:, None] >> np.arange(n) & 1
    else:
        flipped = np.random.default_rng(seed).integers(0, 2, (FLIPS, n))
    return 1.0 - 2 * flipped


def holm(p: np.ndarray) -> np.ndarray:
    """p values adjusted by Holm's step-down procedure (Holm, 1979)."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = (len(p) - np.arange(len(p))) * p[order]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted


def verdict(difference: float, p_holm: float, higher_is_better: bool) -> str:
    """`better` or `worse` where the corrected test rejects, else `unclear`."""
    if p_holm >= ALPHA:
        return "unclear"
    return "better" if (difference > 0) == higher_is_better else "worse"
