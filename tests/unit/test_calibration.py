"""What heads do: signals on constructed attention, classes, curves, budgets."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY, tiny_model

from kvbudget import attach, make_cache
from kvbudget.cache.attention import attention_sums
from kvbudget.cache.cache import read_aside
from kvbudget.calibration import functions as signals
from kvbudget.calibration.answer_curves import answer_curves
from kvbudget.calibration.curves import loss_curves
from kvbudget.calibration.probe import Gate, probe
from kvbudget.calibration.prompts import Prompt, find
from kvbudget.policies.allocate import in_proportion, lower_hull, round_to_sum, water_fill
from kvbudget.policies.classify import classify, to_kv_heads
from kvbudget.policies.rules import RULES


def one_hot_attention(rows: list[int], tokens: int) -> torch.Tensor:
    """One head whose last queries attend to one token each."""
    attention = torch.zeros(1, len(rows), tokens)
    attention[0, range(len(rows)), rows] = 1.0
    return attention


def test_retrieval_counts_needle_tokens_that_are_copied():
    ids = [9, 5, 6, 7, 9, 1, 5, 6, 7]  # the needle 5 6 7, a question 1, the answer 5 6 7
    copies = one_hot_attention([1, 2, 3, 0], 9)  # the queries 1, 5, 6 generate 5, 6, 7
    assert signals.retrieval(copies, ids, 3, (1, 2, 3)).tolist() == [1.0]
    once = one_hot_attention([1, 0, 0, 0], 9)
    assert signals.retrieval(once, ids, 3, (1, 2, 3)).tolist() == pytest.approx([1 / 3])
    shifted = one_hot_attention([2, 3, 3, 0], 9)  # in the needle, but not the token generated
    assert signals.retrieval(shifted, ids, 3, (1, 2, 3)).tolist() == pytest.approx([1 / 3])


def test_induction_local_sink_and_previous():
    # A sequence of period 4 read twice after a first token: 9 tokens, the last 4 are queries.
    induction = one_hot_attention([2, 3, 4, 5], 9)
    assert signals.induction(induction, 4).tolist() == [1.0]
    assert signals.induction(one_hot_attention([1, 2, 3, 4], 9), 4).tolist() == [0.0]
    assert signals.previous(one_hot_attention([4, 5, 6, 7], 9)).tolist() == [1.0]
    assert signals.sink(one_hot_attention([0, 3, 4, 8], 9)).tolist() == [0.5]
    far = one_hot_attention([99 - signals.NEAR] * 2, 100)
    assert signals.local(far).tolist() == [0.5]  # near to 98, far from 99


def test_query_heads_are_reduced_to_the_kv_head_that_they_read():
    scores = [[0.0, 0.9, 0.1, 0.2, 0.0, 0.3]]
    assert to_kv_heads(scores, 3).tolist() == [[0.9, 0.2, 0.3]]


def test_retrieval_comes_before_induction():
    heads = {"retrieval": [[0.5, 0.0, 0.0]], "induction": [[0.9, 0.9, 0.1]]}
    classes = classify(heads, 3, {"retrieval": 0.1, "induction": 0.3})
    assert classes == [["retrieval", "induction", "local"]]


def test_lower_hull_is_convex_and_below_the_curve():
    x = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    y = np.array([1.0, 0.9, 0.2, 0.15, 0.0])
    hx, hy = lower_hull(x, y)
    assert (np.interp(x, hx, hy) <= y + 1e-12).all()
    assert (np.diff(np.diff(hy) / np.diff(hx)) > 0).all()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_water_filling_is_optimal(data):
    """Against every way to give out the tokens, for convex curves on small cases."""
    heads = data.draw(st.integers(1, 3))
    tokens = data.draw(st.integers(2, 6))
    drops = st.lists(st.integers(0, 20), min_size=tokens, max_size=tokens)
    falls = np.array([sorted(data.draw(drops), reverse=True) for _ in range(heads)], float)
    losses = falls.sum(1, keepdims=True) - np.pad(falls.cumsum(1), ((0, 0), (1, 0)))
    floor = data.draw(st.integers(0, 1))
    total = data.draw(st.integers(heads * floor, heads * tokens))
    shares = np.linspace(0, 1, tokens + 1)
    ours = water_fill(shares, losses, total, floor, tokens)
    assert ours.sum() == total
    assert ((ours >= floor) & (ours <= tokens)).all()

    def loss(budgets) -> float:
        return sum(losses[head, budget] for head, budget in enumerate(budgets))

    everything = itertools.product(range(floor, tokens + 1), repeat=heads)
    best = min(loss(budgets) for budgets in everything if sum(budgets) == total)
    assert loss(ours) == pytest.approx(best)


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.sampled_from([1.0, 2.0, 4.0]), min_size=1, max_size=12),
    tokens=st.integers(1, 100),
    share=st.floats(0, 1),
)
def test_budgets_by_class_add_up_and_respect_the_bounds(weights, tokens, share):
    floor = min(4, tokens)
    total = round(len(weights) * (floor + share * (tokens - floor)))
    budgets = in_proportion(np.array(weights), total, floor, tokens)
    assert budgets.sum() == total
    assert ((budgets >= floor) & (budgets <= tokens)).all()
    order = np.argsort(weights, kind="stable")
    assert (np.diff(budgets[order])[np.diff(np.array(weights)[order]) > 0] >= -1).all()


def test_a_total_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="do not fit"):
        water_fill(np.array([0.0, 1.0]), np.ones((2, 2)), 100, 1, 10)


def test_rounding_keeps_the_sum():
    assert round_to_sum(np.array([1.5, 1.5, 2.0]), 5).tolist() == [2, 1, 2]


def test_find_takes_the_last_occurrence_and_forgives_a_merged_first_token():
    assert find([5, 6], [5, 6, 1, 5, 6, 2]) == (3, 4)
    assert find([9, 5, 6], [1, 5, 6, 2]) == (1, 2)
    assert find([7, 8], [1, 2, 3]) == ()


@pytest.fixture(scope="module")
def probed():
    model = attach(tiny_model("llama"))
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, VOCABULARY, (60,), generator=generator).tolist()
    cache, logits = probe(model, ids[:48], ids[48:])
    return model, ids, cache, logits


def test_the_probe_sees_what_the_model_computes(probed):
    _, ids, cache, logits = probed
    stock = tiny_model("llama")
    stock.set_attn_implementation("eager")
    expected = stock(torch.tensor([ids]), output_attentions=True)
    torch.testing.assert_close(logits, expected.logits[0, 48:], atol=2e-5, rtol=1e-5)
    for layer, attention in zip(cache.probes, expected.attentions, strict=True):
        torch.testing.assert_close(
            layer.probabilities.flatten(1, 2), attention[:, :, 48:], atol=1e-5, rtol=1e-4
        )


def test_blockwise_sums_equal_eager_attention(probed):
    """H2O's sums, in blocks and over grouped heads, against the whole attention matrix."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 300, 16, generator=generator)
    key = torch.randn(2, 3, 320, 16, generator=generator)
    logits = query.unflatten(1, (3, 2)) @ key.unsqueeze(2).transpose(-1, -2) * 0.25
    mask = torch.ones(300, 320, dtype=torch.bool).tril(20)
    expected = logits.masked_fill(~mask, float("-inf")).softmax(-1).sum(dim=(2, 3))
    torch.testing.assert_close(
        attention_sums(query, key, scaling=0.25), expected, atol=1e-5, rtol=1e-5
    )


def test_loss_curves_fall_from_everything_to_nothing(probed):
    *_, cache, _ = probed
    shares = [0.0, 0.1, 0.25, 0.5, 1.0]
    for layer in cache.probes:
        for by_rule in loss_curves(layer, RULES, shares, recent=4).values():
            for curve in by_rule.values():
                assert curve.shape == (3, 5)
                assert (curve.diff(dim=-1) <= 1e-6).all()
                assert (curve[:, -1] < 1e-5).all()
                assert (curve[:, 0] <= 1).all()


def test_the_mass_curve_is_what_an_evicting_cache_loses(probed):
    """The loss at a budget is the later queries' attention to the tokens that the cache evicts."""
    model, ids, probe_cache, _ = probed
    kept = 24
    options = {"rule": "diversity", "safeguard": 1.0, "recent": 4}
    cache = make_cache(model, "head-aware", kept, **options)
    model(torch.tensor([ids[:48]]), past_key_values=cache)
    curves = loss_curves(probe_cache.probes[0], RULES, [kept / 48], recent=4)
    attention = probe_cache.probes[0].probabilities[0].mean(dim=(1, 2))
    for head, positions in enumerate(cache.kept_positions(0)):
        evicted = torch.ones(48, dtype=torch.bool)
        evicted[positions] = False
        lost = attention[head, :48][evicted].sum()
        torch.testing.assert_close(curves["mass"]["diversity"][head, 0], lost, atol=1e-5, rtol=1e-4)


def read_gated(probed, fewer: list, more: list, mix: torch.Tensor) -> torch.Tensor:
    """Later logits with every layer between two states; `mix` is `(layers, kv_heads)`."""
    model, ids, cache, _ = probed
    for layer, *gate in zip(cache.probes, fewer, more, mix, strict=True):
        layer.gate = Gate(*gate)
    read = read_aside(model, cache, ids[48:])
    for layer in cache.probes:
        layer.gate = None
    return read


def test_a_gate_goes_from_an_evicting_cache_to_the_full_one(probed):
    model, ids, _, logits = probed
    evicting = make_cache(model, "head-aware", 16, safeguard=1.0, recent=4)
    model(torch.tensor([ids[:48]]), past_key_values=evicting)
    fewer = torch.zeros(4, 3, 48, dtype=torch.bool)
    for layer in range(4):
        for head, positions in enumerate(evicting.kept_positions(layer)):
            fewer[layer, head, positions] = True
    read = model(torch.tensor([ids[48:]]), past_key_values=evicting).logits[0]
    ends = [read_gated(probed, fewer, ~fewer | fewer, torch.full((4, 3), end)) for end in (0.0, 1)]
    torch.testing.assert_close(ends[0], read, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ends[1], logits, atol=1e-5, rtol=1e-5)


def test_answer_curves_are_the_slopes_in_the_middle_of_each_step(probed):
    """Against finite differences of the answer's likelihood by one head's gate."""
    model, ids, cache, _ = probed
    prompt = Prompt("text", ids[:48], ids[48:], 11)
    losses = answer_curves(model, cache, prompt, "diversity", [0.25, 0.5, 1.0], recent=4)
    assert losses.shape == (4, 3, 3)
    assert (losses[..., -1] == 0).all()
    order = [
        layer.context.protect(RULES["diversity"](layer.context), recent=4)[0].sort(
            dim=-1, descending=True, stable=True
        )
        for layer in cache.probes
    ]
    kept = torch.zeros(2, 4, 3, 48, dtype=torch.bool)
    for state, count in zip(kept, (12, 24), strict=True):
        for layer, ranked in enumerate(order):
            state[layer].scatter_(1, ranked.indices[:, :count], True)
    for layer, head in ((0, 1), (2, 0), (3, 2)):
        mix = torch.full((2, 4, 3), 0.5)
        mix[:, layer, head] += torch.tensor([-0.01, 0.01])
        low, high = (prompt.nll(read_gated(probed, *kept, each)) for each in mix)
        gain = losses[layer, head, 0] - losses[layer, head, 1]
        torch.testing.assert_close(gain, (low - high) / 0.02, atol=3e-4, rtol=0.05)
