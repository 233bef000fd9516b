"""The paper's propositions against brute force: whatever set of tokens one could have evicted."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

FLOOR = 1e-3
SLACK = 1 + 1e-9  # of rounding


@st.composite
def heads(draw):
    """Predictions and scores of a head's tokens, ties among them, and how many tokens go."""
    count = draw(st.integers(2, 8))
    numbers = st.lists(st.integers(-8, 0), min_size=count, max_size=count)
    predicted = np.array(draw(numbers), dtype=float)
    scores = np.exp(np.array(draw(numbers), dtype=float))
    return predicted, scores, draw(st.integers(1, count - 1))


def evict(predicted: np.ndarray, going: int) -> tuple[set[int], set[int]]:
    """What goes and what stays."""
    order = np.argsort(predicted, kind="stable").tolist()
    return set(order[:going]), set(order[going:])


@given(heads())
def test_what_the_largest_error_can_cost(head):
    predicted, scores, going = head
    cut = np.maximum(scores, FLOOR)
    factor = math.exp(2 * np.abs(predicted - np.log(cut)).max()) * SLACK
    gone, kept = evict(predicted, going)
    assert cut[list(gone)].max() <= factor * cut[list(kept)].min()
    for other in combinations(range(len(scores)), going):
        assert cut[list(gone)].sum() <= factor * cut[list(other)].sum()
        uncut = FLOOR * going + scores[list(other)].sum()
        assert scores[list(gone)].sum() <= factor * uncut


@given(heads(), st.floats(0.1, 4))
def test_what_the_mean_square_can_cost(head, tolerated):
    predicted, scores, going = head
    logs = np.log(np.maximum(scores, FLOOR))
    sigma = (predicted - logs).std()
    count = len(scores)
    gone, _ = evict(predicted, going)
    for other in combinations(range(count), going):
        apart = len(gone - set(other))
        bound = math.sqrt(2 * apart * count) / going * sigma + 1e-9
        assert logs[list(gone)].mean() <= logs[list(other)].mean() + bound
        most = math.exp(2 * tolerated) * np.exp(logs[list(other)]).sum()
        most += count * sigma**2 / tolerated**2
        assert np.exp(logs[list(gone)]).sum() <= most * SLACK


@pytest.mark.parametrize("count, going, apart", [(2, 1, 1), (10, 9, 1), (10, 5, 5), (12, 8, 4)])
def test_errors_of_equal_size_reach_the_bound(count, going, apart):
    """Equal predictions; what goes scores above, and what stays in its place below."""
    logs = np.zeros(count)
    logs[:apart], logs[going : going + apart] = 1.0, -1.0
    gone, other = range(going), range(apart, going + apart)
    sigma = (0 - logs).std()
    lost = logs[list(gone)].mean() - logs[list(other)].mean()
    assert lost == pytest.approx(math.sqrt(2 * apart * count) / going * sigma)


def test_no_factor_of_the_variance_bounds_the_sum():
    """One token of many holds nearly all, and is predicted lowest."""
    for count in (100, 10_000, 1_000_000):
        logs = np.full(count, math.log(FLOOR))
        logs[0] = 0.0
        predicted = np.full(count, math.log(FLOOR))
        sigma = (predicted - logs).std()
        assert np.exp(logs[0]) / np.exp(logs[1]) == pytest.approx(1 / FLOOR)  # with one to go
        assert sigma < 7 / math.sqrt(count)


@given(st.integers(1, 9), st.floats(0.05, 0.5))
def test_the_exponent_shrinks_with_the_budget(tens, share):
    """With a share of at most one half kept, by the formula that the text gives."""
    count = 100 * tens
    kept = round(share * count)
    assume(0 < kept <= count / 2)
    beta, going = kept / count, count - kept
    most = max(math.sqrt(2 * m * count) / going for m in range(min(kept, going) + 1))
    assert most == pytest.approx(math.sqrt(2 * beta) / (1 - beta))


@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.data())
def test_what_evicted_mass_does_to_the_output(seed, count, data):
    rng = np.random.default_rng(seed)
    logits, values = 3 * rng.normal(size=count), rng.normal(size=(count, 3))
    weights = np.exp(logits) / np.exp(logits).sum()
    gone = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
    evicted = np.isin(np.arange(count), list(gone))
    mass = weights[evicted].sum()
    output = weights @ values
    left = np.where(evicted, 0, np.exp(logits))
    renormalised = left / left.sum() @ values
    of_evicted = weights[evicted] @ values[evicted] / mass
    np.testing.assert_allclose(output - renormalised, mass * (of_evicted - renormalised), atol=1e-9)
    longest = np.linalg.norm(values, axis=1).max()
    assert np.linalg.norm(output - renormalised) <= 2 * mass * longest * SLACK
