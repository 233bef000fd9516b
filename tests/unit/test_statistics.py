"""What intervals and tests promise, held against data whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from kvbudget.analysis.statistics import (
    ALPHA,
    FLIPS,
    Estimate,
    detectable,
    effect_size,
    holm,
    least_p,
    mean_interval,
    paired_p,
    verdict,
)

SHARE, DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)
#: The least coverage that is asked of a 95% interval, at any number of contexts in use.
COVERAGE = 0.93
CONTEXTS = (6, 10, 12, 20)


def questions(rng, chance, size):
    """Shares of four questions that are right: five levels, and often all alike."""
    return rng.binomial(4, chance, size) / 4


def paired(rng, mine, theirs, size):
    """Differences of such shares of two methods that are right on much the same questions."""
    shared, own = rng.random((2, *size, 4))
    other = np.where(rng.random((*size, 4)) < 0.7, shared, own)
    return (shared < mine).mean(-1) - (other < theirs).mean(-1)


#: Name: (draws of a size, true mean, bounds).
SCORES = {
    "normal": (lambda rng, size: rng.normal(size=size), 0.0, None),
    "exponential": (lambda rng, size: rng.exponential(size=size), 1.0, None),
    "gamma": (lambda rng, size: rng.gamma(2, size=size), 2.0, None),
    "lognormal": (lambda rng, size: rng.lognormal(0, 0.5, size), math.exp(0.125), None),
    "half right": (lambda rng, size: questions(rng, 0.5, size), 0.5, SHARE),
    "mostly right": (lambda rng, size: questions(rng, 0.8, size), 0.8, SHARE),
    "nearly all right": (lambda rng, size: questions(rng, 0.95, size), 0.95, SHARE),
    "large difference": (lambda rng, size: paired(rng, 0.8, 0.4, size), 0.4, DIFFERENCE),
    "small difference": (lambda rng, size: paired(rng, 0.9, 0.85, size), 0.05, DIFFERENCE),
    "difference at the top": (lambda rng, size: paired(rng, 0.95, 0.6, size), 0.35, DIFFERENCE),
}


def coverage(name, contexts, repetitions):
    """How often the interval holds the true mean of such scores."""
    draw, truth, bounds = SCORES[name]
    samples = draw(np.random.default_rng(contexts), (repetitions, contexts))
    found = (mean_interval(sample, 1, bounds, resamples=999) for sample in samples)
    return np.mean([e.low - 1e-9 <= truth <= e.high + 1e-9 for e in found])


@pytest.mark.parametrize("contexts", CONTEXTS)
@pytest.mark.parametrize("name", SCORES)
def test_intervals_cover_the_truth(name, contexts):
    bounds = SCORES[name][2]
    assert coverage(name, contexts, 1000 if bounds is None else 2000) >= COVERAGE


@pytest.mark.parametrize("contexts", CONTEXTS)
def test_the_test_finds_what_is_not_there_no_more_often_than_it_says(contexts):
    rng = np.random.default_rng(contexts)
    nothing = rng.normal(size=(400, contexts))
    found = np.mean([paired_p(sample, 1) < ALPHA for sample in nothing])
    assert found <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / len(nothing))


def test_a_family_finds_what_is_not_there_no_more_often_than_one_test():
    """Of twenty comparisons of nothing, one is called clear in at most a twentieth of families."""
    rng = np.random.default_rng(0)
    families = [
        holm(np.array([paired_p(sample, 1) for sample in rng.normal(size=(20, 10))]))
        for _ in range(60)
    ]
    assert np.mean([(p < ALPHA).any() for p in families]) <= 0.13  # 3 of 60 and chance


def test_what_a_family_can_detect_is_found_about_as_often_as_it_says():
    """A paired t test at the corrected level, on made-up contexts with just that difference."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2000, 12))
    for family in (1, 10):
        least = detectable(noise[0], family) / noise[0].std(ddof=1)
        found = stats.ttest_1samp(noise + least, 0, axis=1).pvalue < ALPHA / family
        assert 0.75 < found.mean() < 0.86
    assert detectable(noise[0], 10) > detectable(noise[0], 1)
    assert detectable(np.tile(noise[0], 4), 1) < detectable(noise[0], 1) / 1.9


def test_so_few_contexts_detect_nothing():
    assert math.isnan(detectable(np.zeros(12), 1))
    five, six = np.arange(5.0), np.arange(6.0)
    assert math.isnan(detectable(five, 1)) and not math.isnan(detectable(six, 1))
    assert math.isnan(detectable(six, 2))


def test_the_least_p():
    assert least_p(6) == 2 / 64
    assert least_p(100) == pytest.approx(1e-4)
    assert paired_p(np.ones(6), 1) == pytest.approx(least_p(6))
    assert paired_p(np.ones(100), 1) == pytest.approx(least_p(100))


def test_intervals_of_equal_values():
    """A share that never varied may still vary; a likelihood that never varied is no chance."""
    assert mean_interval(np.ones(6), 1, None) == Estimate(1.0, 1.0, 1.0, 6)
    share = mean_interval(np.ones(12), 1, SHARE)
    assert share.high == 1.0 and 0.8 < share.low < 0.95
    nothing = mean_interval(np.zeros(12), 1, DIFFERENCE)
    assert nothing.low == -nothing.high < 0


def test_few_contexts_have_no_interval():
    for bounds in (None, SHARE):
        estimate = mean_interval(np.arange(5) / 5, 1, bounds)
        assert estimate.value == pytest.approx(0.4) and math.isnan(estimate.low)
        assert math.isfinite(mean_interval(np.arange(6) / 5, 1, bounds).low)


def test_one_context_that_differs_has_a_finite_interval():
    estimate = mean_interval(np.array([0, 0, 0, 0, 0, 1.0]), 1, None)
    assert math.isfinite(estimate.low) and math.isfinite(estimate.high)


def test_intervals_follow_skew():
    values = np.random.default_rng(0).exponential(size=12)
    estimate = mean_interval(values, 1, None)
    assert estimate.high - estimate.value > estimate.value - estimate.low


def test_a_likelihood_is_cut_at_what_it_cannot_pass():
    values = np.array([0.04] * 19 + [3.4])
    free, cut = (mean_interval(values, 1, bounds) for bounds in (None, (0.0, math.inf)))
    assert free.low < cut.low == 0
    assert (free.value, free.high, free.n) == (cut.value, cut.high, cut.n)


def test_the_same_seed_gives_the_same_numbers():
    values = np.random.default_rng(0).normal(size=30)
    assert mean_interval(values, 3, None) == mean_interval(values, 3, None)
    assert paired_p(values, 3) == paired_p(values, 3)


def test_effect_size_by_hand():
    assert effect_size(np.array([1.0, 2.0, 3.0])) == pytest.approx(2.0)
    assert math.isnan(effect_size(np.ones(5)))
    assert math.isnan(effect_size(np.array([1.0])))


def test_permutation_is_exact_for_few_contexts():
    assert paired_p(np.arange(1.0, 7), 1) == pytest.approx(2 / 2**6)
    assert paired_p(np.array([1.0, 1, 1, 1, 1, -1]), 1) == pytest.approx(14 / 64)
    assert paired_p(np.zeros(6), 1) == 1.0
    assert paired_p(np.array([1.0]), 1) == 1.0


@pytest.mark.parametrize("contexts", [6, 12, 14, 15, 20])
def test_permutation_is_that_of_scipy(contexts):
    """To the last flip where all are tried; else as near as other draws come. Values with few
    levels have many sums that are equal but for rounding."""
    rng = np.random.default_rng(contexts)
    for differences in (rng.normal(0.3, 1, contexts), rng.integers(-4, 6, contexts) / 30):
        theirs = stats.permutation_test(
            (differences,),
            np.mean,
            permutation_type="samples",
            vectorized=True,
            n_resamples=FLIPS,
            rng=np.random.default_rng(1),
        )
        apart = 1e-12 if 2**contexts <= FLIPS else 0.02
        assert paired_p(differences, 1) == pytest.approx(float(theirs.pvalue), abs=apart)


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])


@pytest.mark.parametrize(
    "difference, p, said",
    [(0.2, 0.01, "better"), (-0.2, 0.01, "worse"), (0.2, 0.06, "unclear"), (0.0, 1.0, "unclear")],
)
def test_a_verdict_is_that_of_the_corrected_test(difference, p, said):
    opposite = {"better": "worse", "worse": "better", "unclear": "unclear"}
    assert verdict(difference, p, higher_is_better=True) == said
    assert verdict(difference, p, higher_is_better=False) == opposite[said]
