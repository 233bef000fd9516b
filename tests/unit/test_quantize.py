"""Quantised storage: what it costs, what it loses, and that a cache attends to what it stores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY, tiny_model
from torch.nn.functional import scaled_dot_product_attention

from kvbudget import UserError, attach, make_cache
from kvbudget.cache.attention import attention_received
from kvbudget.cache.budget import Geometry
from kvbudget.cache.layer import BudgetedLayer, LayerOptions
from kvbudget.cache.plan import Plan
from kvbudget.cache.quantize import BITS, Codec, Quantizer, rotation
from kvbudget.cache.ragged import attend_slots
from kvbudget.policies.make import make_policy

DIM = 16


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(
    bits=st.sampled_from(BITS),
    seed=st.integers(0, 1000),
    scale=st.floats(1e-2, 1e3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_number_moves_by_half_a_step_at_most(bits, seed, scale, dtype):
    codec = Quantizer(bits, DIM)
    x = drawn(3, 5, DIM, seed=seed, scale=scale).to(dtype)
    rows = codec.encode(x)
    assert rows.dtype == torch.uint8
    assert rows.shape == (3, 5, codec.width)
    back = codec.decode(rows)
    step = (x.float().amax(-1, keepdim=True) - x.float().amin(-1, keepdim=True)) / (2**bits - 1)
    largest = x.float().abs().amax(-1, keepdim=True)
    assert ((back - x.float()).abs() <= 0.5 * step + 2e-3 * largest).all()


@pytest.mark.parametrize("bits", BITS)
def test_storing_what_was_read_changes_nothing(bits):
    codec = Quantizer(bits, DIM)
    rows = codec.encode(drawn(50, DIM))
    once = codec.decode(rows)
    again = codec.decode(codec.encode(once))
    torch.testing.assert_close(again, once, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("bits", BITS)
def test_rows_are_attended_to_as_if_they_were_decoded(bits):
    codec = Quantizer(bits, DIM)
    rows = codec.encode(drawn(2, 3, 50, DIM, seed=1))
    queries, weights = drawn(2, 3, 4, DIM, seed=2), drawn(2, 3, 4, 50, seed=3).softmax(-1)
    vectors = codec.decode(rows)
    torch.testing.assert_close(codec.products(queries, rows), queries @ vectors.mT)
    torch.testing.assert_close(codec.combine(weights, rows), weights @ vectors)


def test_equal_numbers_stay_as_they_are():
    codec = Quantizer(4, DIM)
    constant = torch.full((2, DIM), 3.0)
    assert torch.equal(codec.decode(codec.encode(constant)), constant)


def test_turning_keeps_products_and_comes_back():
    codec = Codec(4, None, DIM)
    query, key = drawn(4, DIM, seed=1), drawn(7, DIM, seed=2)
    torch.testing.assert_close(codec.turn(query) @ codec.turn(key).T, query @ key.T)
    torch.testing.assert_close(codec.turn_back(codec.turn(key)), key)
    again = rotation.__wrapped__(DIM, torch.float32, torch.device("cpu"))
    assert torch.equal(codec.turn(torch.eye(DIM)), again)


@given(
    bits=st.sampled_from(BITS),
    value_bits=st.sampled_from([None, *BITS]),
    tokens=st.integers(8, 5000),
    head_dim=st.sampled_from([32, 64, 96, 128, 256]),
    numbers=st.integers(0, 2),
)
def test_the_bytes_of_a_budget_are_not_exceeded(bits, value_bits, tokens, head_dim, numbers):
    codec = Codec(bits, value_bits, head_dim)
    each = codec.keys.width + codec.values.width + 4 + 4 * numbers
    kept = codec.slots(tokens, numbers)
    assert kept * each <= tokens * 2 * head_dim * 2 < (kept + 1) * each


@pytest.mark.parametrize(
    ("bits", "message"), [(3, "bits must be one of 2, 4, 8"), (2, "fill bytes")]
)
def test_bits_that_cannot_be_had_are_refused(bits, message):
    with pytest.raises(UserError, match=message):
        Quantizer(bits, 18)


@pytest.fixture(scope="module")
def llama():
    return attach(tiny_model("llama"))


def test_keys_that_move_cannot_be_quantised(llama):
    with pytest.raises(UserError, match="positions: absolute"):
        make_cache(llama, "streaming-llm", 16, bits=4)


def test_bits_of_values_alone_are_refused(llama):
    with pytest.raises(UserError, match="value_bits needs bits"):
        make_cache(llama, "keydiff", 16, value_bits=2)


@pytest.mark.parametrize(("bits", "value_bits"), [(4, None), (8, None), (4, 2)])
def test_a_decode_step_attends_to_what_is_stored(bits, value_bits):
    """Against attention over keys and values that were quantised one by one, in any layout."""
    codec = Codec(bits, value_bits, DIM)
    geometry = Geometry(layers=(0,), kv_heads=2, query_heads=4, head_dim=DIM)
    policy = make_policy("h2o")
    layer = BudgetedLayer(0, 2, LayerOptions(Plan(policy, geometry, 12, codec=codec)))

    def stored(quantizer: Quantizer, x: torch.Tensor) -> torch.Tensor:
        return codec.turn_back(quantizer.decode(quantizer.encode(codec.turn(x))))

    keys, values = (drawn(1, 2, 60, DIM, seed=seed) for seed in (1, 2))
    keys = keys + drawn(1, 2, 1, DIM, seed=4, scale=20)  # what keys have in common
    layer.update(keys[:, :, :50], values[:, :, :50])
    layer.attend(drawn(1, 4, 50, DIM, seed=3), 0.25, None, None)
    kept = codec.slots(12, numbers=1)
    assert [len(each) for each in layer.kept_positions()] == [kept, kept]
    for step in range(50, 60):
        before = layer.kept_positions()
        query = drawn(1, 4, 1, DIM, seed=step)
        layer.update(keys[:, :, step : step + 1], values[:, :, step : step + 1])
        output = layer.attend(query, 0.25, None, None)
        for head in range(2):
            seen = torch.cat((before[head], torch.tensor([step])))
            centre = keys[:, head, :50].mean(dim=1, keepdim=True)
            k = stored(codec.keys, keys[:, head, seen] - centre) + centre
            v = stored(codec.values, values[:, head, seen])
            expected = scaled_dot_product_attention(
                query[0, 2 * head : 2 * head + 2], k, v, scale=0.25
            )
            torch.testing.assert_close(
                output[0, 2 * head : 2 * head + 2], expected, atol=5e-3, rtol=5e-3
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_storage_is_within_the_budget_of_2_byte_numbers(dtype):
    codec = Codec(4, None, 64)
    geometry = Geometry(layers=(0,), kv_heads=2, query_heads=2, head_dim=64)
    plan = Plan(make_policy("keydiff"), geometry, 512, codec=codec)
    layer = BudgetedLayer(0, 2, LayerOptions(plan))
    tokens = drawn(1, 2, 3000, 64).to(dtype)
    layer.update(tokens, tokens)
    layer.attend(tokens, 0.1, None, None)
    assert layer.allocated_bytes() <= 1.02 * geometry.planned_bytes(512, 2)
    assert layer.allocated_bytes() >= 0.98 * geometry.planned_bytes(512, 2)


def test_eight_bits_change_little_and_a_snapshot_brings_back_the_same(llama):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCABULARY, (1, 60), generator=generator)
    exact, stored = make_cache(llama, "full"), make_cache(llama, "full", bits=8)
    for cache in (exact, stored):
        llama(ids[:, :50], past_key_values=cache)
    state = stored.snapshot()
    first = llama(ids[:, 50:], past_key_values=stored).logits
    torch.testing.assert_close(
        first, llama(ids[:, 50:], past_key_values=exact).logits, atol=0.02, rtol=0.02
    )
    stored.restore(state)
    assert torch.equal(llama(ids[:, 50:], past_key_values=stored).logits, first)


@pytest.mark.parametrize("budget", [10, 30, 59, 70])
def test_a_prompt_attends_to_itself_as_it_is_whatever_the_budget(llama, budget):
    ids = torch.randint(2, VOCABULARY, (1, 60), generator=torch.Generator().manual_seed(1))
    exact = llama(ids, past_key_values=make_cache(llama, "full")).logits
    read = llama(ids, past_key_values=make_cache(llama, "keydiff", budget, bits=4)).logits
    torch.testing.assert_close(read, exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text", "phi3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_batch_in_pieces_in_eight_bits_is_near_the_full_cache(kind, dtype):
    """Left padding, growing storage (which is read and stored again), soft caps, sliding layers."""
    model = attach(tiny_model(kind).to(dtype))
    ids = torch.randint(2, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    found = []
    for bits in (None, 8):
        cache = make_cache(model, "full", bits=bits)
        for start, stop in [(0, 20), (20, 30), (30, 39), (39, 40)]:
            given = {"attention_mask": mask[:, :stop]}
            logits = model(ids[:, start:stop], past_key_values=cache, **given).logits[:, -1:]
        found.append(logits.float().softmax(dim=-1))
    torch.testing.assert_close(*found, atol=0.05, rtol=0)


def test_a_quantised_step_tells_what_its_tokens_received(llama):
    """The weights of the output serve the signals, too: no second pass over decoded keys."""
    cache = make_cache(llama, "tova", 16, bits=4)
    ids = torch.randint(2, VOCABULARY, (1, 60), generator=torch.Generator().manual_seed(3))
    llama(ids, past_key_values=cache)
    slots = cache.budgeted[0].store.slots
    query = drawn(1, 6, 1, DIM, seed=5)
    _, (received,) = attend_slots(query, slots, scaling=0.25, softcap=None, padded=False)
    (held,) = slots.tokens()
    expected = attention_received(query, held.keys, scaling=0.25)
    torch.testing.assert_close(received, expected, atol=1e-5, rtol=1e-5)


def test_what_stays_keeps_its_bytes():
    """However often its layer is laid out anew: codes are copied, and do not drift."""
    model = attach(tiny_model("llama"))
    cache = make_cache(model, "h2o", 12, bits=4)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCABULARY, (1, 135), generator=generator)
    model(ids[:, :90], past_key_values=cache)
    for piece in ids[:, 90:].split(9, dim=1):
        before = rows_held(cache)
        model(piece, past_key_values=cache)
        after = rows_held(cache)
        stayed = before.keys() & after.keys()
        assert len(stayed) > len(before) / 2
        assert all(torch.equal(before[token], after[token]) for token in stayed)


def rows_held(cache) -> dict[tuple[int, int, int], torch.Tensor]:
    """Bytes of each token, by layer, KV head and position."""
    return {
        (index, head, int(position)): torch.cat((key, value)).clone()
        for index, layer in enumerate(cache.budgeted)
        for segment in layer.store.slots.segments
        for i, head in enumerate(segment.heads)
        for key, value, position in zip(
            *(each[0, i] for each in segment.stored().tensors()[:3]), strict=True
        )
    }
