"""Signals: a method brings a statistic of its own along, and the cache carries it."""

import pytest
import torch
from tiny import VOCABULARY, tiny_model
from torch.testing import assert_close

from kvbudget import UserError, attach, make_cache
from kvbudget.cache.cache import BudgetedCache, geometry_of, layers_of, read_aside
from kvbudget.cache.layer import BudgetedLayer, LayerOptions
from kvbudget.cache.plan import Plan
from kvbudget.cache.policy import Policy
from kvbudget.cache.positions import rotations_of
from kvbudget.cache.quantize import Codec
from kvbudget.cache.signals import Signal
from kvbudget.policies.received import Attention, Window

COUNT, BUDGET = 60, 16


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (1, count), generator=generator)


def build(model, policy: Policy, budget=BUDGET, bits=None, **options) -> BudgetedCache:
    geometry = geometry_of(model)
    codec = bits and Codec(bits, None, geometry.head_dim)
    plan = Plan(policy, geometry, budget, None, codec)
    rotations = rotations_of(model, geometry.layers) if policy.unrotates else None
    shared = LayerOptions(plan, rotations=rotations, **options)
    return BudgetedCache(layers_of(model, lambda i: BudgetedLayer(i, 3, shared)), plan)


def held(cache: BudgetedCache, layer: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and numbers of the tokens kept, `(batch, kv_heads, tokens)` each."""
    (kept,) = cache.budgeted[layer].store.slots.tokens()
    return kept.positions.long(), kept.signals[name]


class Predicted(Signal):
    """What a learned scorer needs: keys before rotation and values of all heads, once."""

    name = "predicted"

    def arrive(self, arrival):
        features = torch.cat((arrival.unrotated_key, arrival.value), dim=-1)  # (b, h, n, 2d)
        return predicted(features.transpose(1, 2).flatten(2)).transpose(1, 2)


def predicted(features: torch.Tensor) -> torch.Tensor:
    """Scores `(batch, tokens, kv_heads)` of features `(batch, tokens, kv_heads * 2 * head_dim)`."""
    generator = torch.Generator().manual_seed(7)
    return features.float() @ torch.randn(features.shape[-1], 3, generator=generator)


class Scorer(Policy):
    unrotates = True

    def signals(self, layer):
        return [Predicted()]

    def score(self, candidates):
        return candidates.protect(candidates.signals["predicted"])


@pytest.mark.parametrize("options", [{}, {"bits": 4}, {"prefill_chunk": 13}, {"stride": 3}])
def test_a_number_is_worked_out_once_and_travels_with_its_token(options):
    """From keys before rotation and values of the whole layer, before anything is quantised."""
    model, stock = attach(tiny_model("llama")), tiny_model("llama")
    # None comes twice: in the first layer it would have one score twice, but for rounding.
    ids = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(0))[None, :COUNT]
    found = {}
    for index, layer in enumerate(stock.model.layers):
        for part in ("k_proj", "v_proj"):
            getattr(layer.self_attn, part).register_forward_hook(
                lambda _, __, out, key=(index, part): found.update({key: out})
            )
    stock(ids)
    cache = build(model, Scorer(), COUNT if "bits" in options else BUDGET, **options)
    model(ids, past_key_values=cache)
    layer = 0  # what the next ones see depends on what was evicted, if it was in pieces
    parts = [found[layer, part].view(1, COUNT, 3, 16) for part in ("k_proj", "v_proj")]
    wanted = predicted(torch.cat(parts, dim=-1).flatten(2)).transpose(1, 2)
    positions, numbers = held(cache, layer, "predicted")
    assert_close(numbers, wanted.gather(2, positions), atol=1e-4, rtol=1e-4)
    if not options:
        protected = wanted.index_fill(2, torch.tensor([0, 1, 2, 3, COUNT - 1]), torch.inf)
        best = protected.topk(BUDGET, dim=-1).indices.sort(dim=-1).values
        assert torch.equal(positions, best)
    for seed in range(12):  # other tokens come and go, these keep their numbers
        model(tokens(1, seed), past_key_values=cache)
    positions, numbers = held(cache, layer, "predicted")
    old = positions < COUNT
    again = wanted.gather(2, positions.clamp(max=COUNT - 1))
    assert_close(numbers[old], again[old], atol=1e-4, rtol=1e-4)


def test_padding_is_not_told_from_the_start_of_a_sequence():
    model, alone = attach(tiny_model("llama")), tokens(33, 1)
    ids = torch.cat((torch.zeros(1, 7, dtype=torch.long), alone), dim=1)
    padded, single = build(model, Scorer()), build(model, Scorer())
    mask = (ids > 0).long()
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)  # as `generate` has them
    model(ids, attention_mask=mask, position_ids=positions, past_key_values=padded)
    model(alone, past_key_values=single)
    for one, other in zip(held(padded, 2, "predicted"), held(single, 2, "predicted"), strict=True):
        assert_close(one, other, atol=1e-4, rtol=1e-4)


class Both(Policy):
    def signals(self, layer):
        return [Attention(), Window()]

    def score(self, candidates):
        return candidates.protect(candidates.positions.float())


@pytest.mark.parametrize("bits", [None, 8])
def test_two_signals_of_a_layer_keep_their_own_numbers(bits):
    model, ids = attach(tiny_model("llama")), tokens(COUNT)
    cache = build(model, Both(), COUNT + 10, bits)
    stock = tiny_model("llama")
    stock.set_attn_implementation("eager")
    attention = stock(ids, output_attentions=True).attentions[3][0].unflatten(0, (3, 2))
    model(ids, past_key_values=cache)
    close = {"atol": 1e-4, "rtol": 1e-3}
    assert_close(held(cache, 3, "attention")[1][0], attention.sum(dim=(1, 2)), **close)
    assert_close(held(cache, 3, "window")[1][0], attention[:, :, -32:].sum(dim=(1, 2)), **close)
    before = held(cache, 3, "attention")[1].clone(), held(cache, 3, "window")[1].clone()
    model(tokens(1, 1), past_key_values=cache)
    grown = [held(cache, 3, name)[1] for name in ("attention", "window")]
    steps = [after[..., :COUNT] - old for after, old in zip(grown, before, strict=True)]
    assert_close(steps[0], steps[1], atol=1e-5, rtol=1e-4)
    assert (steps[0] > 0).all()


class Readings(Signal):
    """How many tokens were read, also for itself."""

    name = "readings"

    def __init__(self):
        self.total = torch.zeros(1)

    def observe_layer(self, readings):
        self.total = self.total + readings[0].new
        super().observe_layer(readings)

    def observe(self, reading, numbers):
        return numbers + reading.new


class Repetitions(Readings):
    name = "repetitions"
    in_repetition = True


class Counting(Policy):
    def signals(self, layer):
        return [Readings(), Repetitions()]

    def score(self, candidates):
        return candidates.protect(candidates.positions.float())


def counted(cache: BudgetedCache) -> dict[str, list]:
    """Of the first layer: numbers of the first head, and what signals hold for themselves."""
    layer = cache.budgeted[0]
    return {
        each.name: [*held(cache, 0, each.name)[1][0, 0].tolist(), each.total.item()]
        for each in layer.signals
    }


def test_reading_and_repeating_are_told_apart_and_a_repetition_leaves_no_trace():
    model = attach(tiny_model("gemma3_text"))
    cache = build(model, Counting())
    model(tokens(8), past_key_values=cache)
    before = [layer.snapshot() for layer in cache.layers]
    with cache.repeating(slice(2, 5)):
        read_aside(model, cache, [5, 6, 7])
    assert counted(cache) == {"readings": [8.0] * 9, "repetitions": [3.0] * 9}
    assert cache.get_seq_length() == 8
    after = [layer.snapshot() for layer in cache.layers]
    assert torch.equal(before[0][0], after[0][0])  # a sliding layer


def test_a_repetition_that_fails_leaves_no_trace_either():
    model = attach(tiny_model("gemma3_text"))
    cache = build(model, Counting())
    model(tokens(8), past_key_values=cache)
    hook = model.model.layers[-1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), cache.repeating(slice(2, 5)):
        read_aside(model, cache, [5, 6, 7])
    hook.remove()
    assert [layer.get_seq_length() for layer in cache.layers] == [8] * 4
    expected = build(model, Counting())
    model(tokens(8), past_key_values=expected)
    one, other = (model(tokens(4, 1), past_key_values=each).logits for each in (cache, expected))
    assert torch.equal(one, other)


def test_a_snapshot_has_the_numbers_and_what_a_signal_holds():
    model = attach(tiny_model("llama"))
    cache = build(model, Counting())
    model(tokens(8), past_key_values=cache)
    state, first = cache.snapshot(), counted(cache)
    for seed in range(2):
        model(tokens(4, seed), past_key_values=cache)
        model(tokens(30, seed), past_key_values=cache)
        cache.restore(state)
        assert counted(cache) == first
    assert cache.budgeted[0].signals[0].held_bytes() == 4
    cache.reset()
    model(tokens(8), past_key_values=cache)
    assert counted(cache) == first


def test_a_context_in_pieces_is_held_and_shared_out_by_its_whole_length():
    model = attach(tiny_model("llama"))
    cache = make_cache(model, "kvzip", "50%")
    for piece in tokens(40).split([11, 20, 9], dim=1):
        model(piece, past_key_values=cache)
    assert cache.awaits(40)
    cache.compress()
    kept = [len(own) for layer in cache.budgeted for own in layer.kept_positions()]
    assert cache.plan.tokens() == 20
    assert sum(kept) == 20 * len(kept)
    assert not cache.awaits(40)
    with pytest.raises(UserError, match="nothing to take a snapshot of"):
        make_cache(model, "kvzip", 16).snapshot()
