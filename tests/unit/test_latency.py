"""Lagging of streamed translations, against hand-worked examples and SimulEval's definitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbudget.errors import UserError
from kvbudget.tasks.latency import (
    average_lagging,
    bleu,
    length_adaptive_average_lagging,
    wait_k,
)

#: The delays, source and reference lengths of SimulEval's own test of its latency metrics.
SIMULEVAL = [1, 1, 2, 3, 5, 7, 7, 9]


def simuleval(delays, source, target):
    """The sum in SimulEval's documentation, term by term."""
    total = 0.0
    for written, delay in enumerate(delays):
        total += delay - written * source / target
        if delay >= source:
            break
    return total / (written + 1)


def test_al_by_hand():
    """Sum of delays 35, minus (0 + ... + 7) * 9 / 8 = 31.5, over 8 tokens."""
    assert average_lagging(SIMULEVAL, 9, 8) == pytest.approx(3.5 / 8)


def test_a_short_translation_by_hand():
    """Delays 5, 7, 9 of 9; a reference of 5: (5 + (7 - 9/5) + (9 - 18/5)) / 3 = 5.2."""
    assert average_lagging([5, 7, 9], 9, 5) == pytest.approx(5.2)
    assert length_adaptive_average_lagging([5, 7, 9], 9, 5) == pytest.approx(5.2)


def test_a_long_translation_is_rewarded_by_al_alone():
    """8 tokens for a reference of 5: AL takes 9/5 a token, LAAL 9/8."""
    assert average_lagging(SIMULEVAL, 9, 5) == pytest.approx((35 - 28 * 9 / 5) / 8)
    assert length_adaptive_average_lagging(SIMULEVAL, 9, 5) == pytest.approx(3.5 / 8)


@pytest.mark.parametrize("k", [1, 3, 5, 20])
def test_wait_k_lags_k_on_equal_lengths(k):
    """Ma et al. (2019), section 4: AL of wait-k is k where both sides are equally long."""
    delays = wait_k(k, 20, 20)
    assert delays[0] == k
    assert delays[-1] == 20
    assert average_lagging(delays, 20, 20) == pytest.approx(k)
    assert length_adaptive_average_lagging(delays, 20, 20) == pytest.approx(k)


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=40).map(sorted),
    st.integers(1, 40),
)
def test_parity_with_simuleval(delays, reference):
    source = 30
    al = average_lagging(delays, source, reference)
    laal = length_adaptive_average_lagging(delays, source, reference)
    assert al == pytest.approx(simuleval(delays, source, reference))
    assert laal == pytest.approx(simuleval(delays, source, max(reference, len(delays))))
    assert laal >= al - 1e-9


@pytest.mark.parametrize(
    ("delays", "source", "reference"),
    [([], 5, 5), ([1], 0, 5), ([1], 5, 0), ([2, 1], 5, 5), ([1, 6], 5, 5)],
)
@pytest.mark.parametrize("metric", [average_lagging, length_adaptive_average_lagging])
def test_impossible_delays_are_refused(metric, delays, source, reference):
    with pytest.raises(UserError):
        metric(delays, source, reference)


def test_bleu_is_of_the_corpus_and_needs_a_reference_each():
    said = ["Au commencement, Dieu créa les cieux et la terre."] * 2
    assert bleu(said, said) == pytest.approx(100)
    assert 0 < bleu(said, [said[0], "Au commencement, Dieu fit le ciel."]) < 100
    with pytest.raises(UserError, match="2 for 1"):
        bleu(said[:1], said)
