"""PyramidKV: budgets that fall linearly and add up, and what they keep, by eager attention."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import Oracle
from tiny import VOCABULARY, tiny_model
from torch.testing import assert_close

from kvbudget import UserError, attach, make_cache
from kvbudget.cache.budget import Geometry
from kvbudget.policies.make import make_policy


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (1, count), generator=generator)


@pytest.fixture(scope="module")
def model():
    return attach(tiny_model("llama"))


def kept(cache) -> list[list[list[int]]]:
    return [[own.tolist() for own in layer.kept_positions()] for layer in cache.budgeted]


def test_budgets_are_those_of_the_authors():
    """By hand: a window of 32 and 100 more on average; over 20 that is 5, so 195 for the first."""
    geometry = Geometry(tuple(range(5)), kv_heads=2, query_heads=4, head_dim=16)
    budgets = make_policy("pyramidkv").budgets(geometry, 132, 2000)
    assert budgets == [
        [32 + own] * 2 for own in (195, 148, 100, 52, 5)
    ]  # of two halves the first is rounded up
    # A prompt of 150 tokens: none beyond it, and the last layers get what the first leave over.
    budgets = make_policy("pyramidkv").budgets(geometry, 132, 150)
    assert [own for own, _ in budgets] == [150, 141, 132, 123, 114]
    assert make_policy("pyramidkv").budgets(geometry, 132, 100) == [[132] * 2] * 5


@given(
    layers=st.integers(1, 40),
    budget=st.integers(8, 3000),
    prompt=st.integers(1, 5000),
    beta=st.integers(1, 50),
)
def test_budgets_add_up_fall_and_leave_room_for_the_window(layers, budget, prompt, beta):
    geometry = Geometry(tuple(range(layers)), kv_heads=3, query_heads=6, head_dim=16)
    policy = make_policy("pyramidkv", beta=beta)
    budgets = policy.budgets(geometry, budget, prompt)
    assert sum(map(sum, budgets)) == budget * layers * 3
    own = [heads[0] for heads in budgets]
    assert all(heads == [heads[0]] * 3 for heads in budgets)
    assert all(after - before <= 1 for before, after in pairwise(own))
    assert min(own) >= min(32, budget // 2)
    assert max(own) <= max(prompt, budget)


def test_each_layer_keeps_its_window_and_what_it_attended_to(model):
    """The last 32 queries of eager attention, pooled over 7 neighbours, within each budget."""
    ids = tokens(150)
    stock = tiny_model("llama")
    stock.set_attn_implementation("eager")
    output = stock(ids, output_attentions=True)
    cache = make_cache(model, "pyramidkv", 70)
    model(ids, past_key_values=cache)
    counts = []
    for attention, layer in zip(output.attentions, kept(cache), strict=True):
        sums = attention[0].unflatten(0, (3, 2))[:, :, -32:].sum(dim=(1, 2))
        for head, positions in enumerate(layer):
            pooled = [sums[head, max(0, j - 3) : min(j + 4, 118)].max() for j in range(118)]
            best = torch.stack(pooled).sort(descending=True, stable=True).indices
            best = best[: len(positions) - 32].sort().values
            assert positions == [*best.tolist(), *range(118, 150)]
        counts.append({len(positions) for positions in layer})
    assert counts == [{106}, {82}, {58}, {34}]


def test_a_pyramid_without_slope_is_snapkv(model):
    flat, snapkv = make_cache(model, "pyramidkv", 40, beta=1), make_cache(model, "snapkv", 40)
    for cache in (flat, snapkv):
        model(tokens(90), past_key_values=cache)
        for seed in range(8):
            model(tokens(1, seed), past_key_values=cache)
    assert kept(flat) == kept(snapkv)


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_it_equals_the_masked_oracle(kind, stride):
    model = attach(tiny_model(kind))
    ours = make_cache(model, "pyramidkv", 16, prompt_tokens=40, stride=stride)
    oracle, ids = Oracle(model), tokens(70)
    for piece in ids.split([13, 27, 7, *[1] * 23], dim=1):
        expected = oracle.forward(piece, ours)
        assert_close(model(piece, past_key_values=ours).logits, expected, atol=1e-5, rtol=1e-5)


def test_the_bytes_are_those_of_the_budget(model):
    ours, snapkv = (make_cache(model, name, 64) for name in ("pyramidkv", "snapkv"))
    for cache in (ours, snapkv):
        model(tokens(200), past_key_values=cache)
    assert ours.allocated_bytes() == snapkv.allocated_bytes()


def test_a_bad_beta_is_named():
    with pytest.raises(UserError, match="beta must be an integer of 1 or more, not 0"):
        make_policy("pyramidkv", beta=0)
