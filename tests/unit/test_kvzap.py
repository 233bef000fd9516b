"""Scores from hidden states: KVzap and the ablation, by a stock model's own, and the hooks."""

import gc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_kvzip_plus import CONTEXT, TOKENIZER, by_definition, model_of
from tiny import VOCABULARY, calibration_of, tiny_calibration, tiny_model
from torch.testing import assert_close

from kvbudget import UserError, attach, make_cache
from kvbudget.cache.budget import SINKS, Geometry
from kvbudget.cache.cache import geometry_of
from kvbudget.cache.positions import rotations_of
from kvbudget.cache.prefill import Prefill, record
from kvbudget.cache.streaming import StreamingCache
from kvbudget.calibration.scorer import AIMS, LEAST, Moments, Read, fit, read
from kvbudget.policies.fitted import Fitted
from kvbudget.policies.make import make_policy

BUDGET, COUNT = 20, 60
KINDS = ["llama", "qwen3", "gemma2", "gemma3_text", "phi3"]
METHODS = {
    "kvzap": {"method": "kvzap"},
    "hidden": {"method": "head-aware", "features": "hidden"},
}


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (1, count), generator=generator)


def cache_of(model, name: str, budget=BUDGET, **options):
    options = {"calibration": calibration_of(model), **METHODS[name], **options}
    return make_cache(model, budget=budget, **options)


def by_hand(kind: str, ids: torch.Tensor, name: str) -> dict[int, np.ndarray]:
    """Scores `(kv_heads, tokens)` of full-attention layers: hidden states between the layers as
    transformers tells them, through the norm before attention, times the map."""
    stock = tiny_model(kind)
    told = calibration_of(stock)["scorer"][name]
    between = stock(ids, output_hidden_states=True).hidden_states
    scores = {}
    for place, index in enumerate(geometry_of(stock).layers):
        given = stock.model.layers[index].input_layernorm(between[index])[0].numpy()
        weights, bias = (np.array(told[part][place]) for part in ("weights", "bias"))
        scores[index] = (given @ weights + bias).T
    return scores


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_heads_keep_the_tokens_of_the_highest_scores_of_hidden_states(kind, name):
    model, ids = attach(tiny_model(kind)), tokens(COUNT)
    cache = cache_of(model, name)
    model(ids, past_key_values=cache)
    expected, recent = by_hand(kind, ids, name), {"kvzap": BUDGET // 2, "hidden": 8}[name]
    assert expected
    for (index, scores), budgets in zip(expected.items(), cache.plan.budgets(), strict=True):
        for held in cache.layers[index].store.slots.tokens():
            for i, head in enumerate(held.heads):
                positions = held.positions[0, i].long().numpy()
                assert_close(
                    held.signals["predicted"][0, i].numpy(),
                    scores[head, positions].astype(np.float32), atol=2e-4, rtol=1e-4,
                )  # fmt: skip
        for head, positions in enumerate(cache.kept_positions(index)):
            assert len(positions) == budgets[head]
            kept = np.isin(np.arange(COUNT), positions)
            assert kept[:SINKS].all() and kept[-recent:].all()
            middle = scores[head, SINKS:-recent][kept[SINKS:-recent]]
            # A token that comes twice has one score twice, in the first layer.
            assert not middle.size or middle.min() >= scores[head][~kept].max() - 1e-4


@pytest.mark.parametrize("pieces", [[60], [25, 1, 34], [7] * 8 + [4], [40, *[1] * 20]])
def test_scores_are_the_same_however_tokens_come(pieces):
    """And in a quantised cache, in whose first layer hidden states are exact."""
    model, ids = attach(tiny_model("llama")), tokens(COUNT)
    expected = by_hand("llama", ids, "kvzap")
    for bits in (None, 4):
        cache = cache_of(model, "kvzap", budget=60, prompt_tokens=60, bits=bits)
        for piece in ids.split(pieces, dim=1):
            model(piece, past_key_values=cache)
        for index in (0,) if bits else range(4):
            for held in cache.budgeted[index].store.slots.tokens():
                for i, head in enumerate(held.heads):
                    wanted = expected[index][head, held.positions[0, i].long().numpy()]
                    got = held.signals["predicted"][0, i].numpy()
                    assert_close(got, wanted.astype(np.float32), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("piece", [1, 7, 32])
def test_chunks_inside_and_outside_of_a_forward_pass_evict_alike(name, piece):
    model, ids = attach(tiny_model("llama")), tokens(COUNT)
    inside = cache_of(model, name, prompt_tokens=COUNT, prefill_chunk=piece, stride=1)
    model(ids, past_key_values=inside)
    outside = cache_of(model, name, prompt_tokens=COUNT, stride=1)
    for part in ids.split(piece, dim=1):
        model(part, past_key_values=outside)
    whole = cache_of(model, name, stride=1)
    model(ids, past_key_values=whole)
    for layer in range(4):
        pairs = zip(inside.kept_positions(layer), outside.kept_positions(layer), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    # Where hidden states are the same, as in the first layer, they end as if read at once.
    for one, other in zip(whole.kept_positions(0), inside.kept_positions(0), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", METHODS)
def test_a_left_padded_batch_keeps_what_batches_of_one_keep(name):
    model = attach(tiny_model("llama"))
    short, long = tokens(33, seed=1), tokens(40, seed=2)
    ids = torch.cat((torch.cat((torch.zeros(1, 7, dtype=torch.long), short), dim=1), long))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    options = {"calibration": calibration_of(model), "prompt_tokens": 40}
    together = cache_of(model, name, **options)
    model(ids, attention_mask=mask, past_key_values=together)
    for row, alone in enumerate((short, long)):
        single = cache_of(model, name, **options)
        model(alone, past_key_values=single)
        for layer in range(4):
            budgets = together.plan.budgets()[layer]
            found = zip(
                together.kept_positions(layer), single.kept_positions(layer), budgets, strict=True
            )
            for mine, theirs, budget in found:
                if alone.shape[1] >= budget:  # or there is padding left beside it
                    assert torch.equal(mine[row], theirs)


def test_a_source_is_read_as_it_comes_beside_its_target():
    model, ids = attach(tiny_model("llama")), tokens(COUNT)
    cache = cache_of(model, "kvzap", prompt_tokens=COUNT)
    alone = cache_of(model, "kvzap", prompt_tokens=COUNT)
    streaming = StreamingCache(cache)
    for i, piece in enumerate(ids.split(6, dim=1)):
        streaming.expect(6)
        target = torch.tensor([[5, 6]])
        places = [*range(6 * i, 6 * i + 6), 2 * i, 2 * i + 1]
        model(
            torch.cat((piece, target), dim=1), past_key_values=streaming,
            position_ids=torch.tensor([places]),
        )  # fmt: skip
        model(piece, past_key_values=alone)
    for layer in range(4):
        pairs = zip(cache.kept_positions(layer), alone.kept_positions(layer), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


# Hooks.


def hooks_of(model) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_hooks_go_with_the_cache_and_caches_do_not_disturb_each_other():
    model, ids = attach(tiny_model("llama")), tokens(COUNT)
    alone = cache_of(model, "kvzap")
    model(ids, past_key_values=alone)
    wanted = [own.tolist() for layer in range(4) for own in alone.kept_positions(layer)]
    del alone
    gc.collect()
    assert hooks_of(model) == 0
    caches = [cache_of(model, "kvzap"), cache_of(model, "hidden"), make_cache(model, "h2o", BUDGET)]
    assert hooks_of(model) == 8  # of four layers and two caches
    for piece in ids.split([50, 10], dim=1):
        for cache in caches:
            model(piece, past_key_values=cache)
        model(piece, use_cache=False)
        model(piece)
    state = caches[0].snapshot()
    caches[0].reset()
    model(ids, past_key_values=caches[0])
    assert [own.tolist() for layer in range(4) for own in caches[0].kept_positions(layer)] == wanted
    caches[0].restore(state)
    caches.pop(0)
    del cache, state
    gc.collect()
    assert hooks_of(model) == 4
    model(tokens(5), past_key_values=caches[0])
    caches.clear()
    gc.collect()
    assert hooks_of(model) == 0


def test_hooks_keep_no_model_alive():
    model = attach(tiny_model("llama"))
    cache = cache_of(model, "kvzap")
    made = cache.made.model
    del model
    gc.collect()
    assert made() is None


def test_a_compiled_model_hands_over_what_attention_is_given():
    torch._dynamo.reset()
    model, ids = attach(tiny_model("llama")), tokens(COUNT)
    compiled, found = torch.compile(model, backend="eager"), []
    for each in (model, compiled):
        cache = cache_of(each, "kvzap")
        for piece in ids.split([40, 10, *[1] * 10], dim=1):
            each(piece, past_key_values=cache)
        found.append([own.tolist() for layer in range(4) for own in cache.kept_positions(layer)])
    assert found[0] == found[1]


def test_a_cache_of_another_model_is_refused():
    model, other = attach(tiny_model("llama")), attach(tiny_model("llama", seed=1))
    with pytest.raises(UserError, match="make the cache for the model that it is used with"):
        other(tokens(COUNT), past_key_values=cache_of(model, "kvzap"))


def test_a_prefill_does_not_hold_what_attention_was_given(tmp_path):
    model, ids = attach(tiny_model("llama")), tokens(COUNT)
    record(model, ids[0].tolist(), [], tmp_path / "0.safetensors", {})
    with pytest.raises(UserError, match="which a prefill does not hold; read the prompt"):
        Prefill(tmp_path / "0.safetensors", {}).adopt(
            cache_of(model, "kvzap"), ids[0].tolist(), model.device
        )


# Budgets and the calibration.


@given(st.integers(1, 300), st.integers(0, 400), st.integers(1, 200), st.sampled_from([0.0, 1.0]))
def test_budgets_of_heads_add_up_and_hold_the_window_and_the_floor(budget, more, recent, share):
    calibration = Fitted(tiny_calibration(2, 3, 6))
    policy = make_policy("kvzap", calibration, window=recent, floor=share / 2)
    geometry = Geometry(layers=(0, 1), kv_heads=3, query_heads=6, head_dim=16)
    budgets = np.array(policy.budgets(geometry, budget, budget + more))
    assert budgets.sum() == 6 * budget
    assert budgets.min() >= min(budget, SINKS + min(recent, budget // 2))
    assert budgets.min() >= int(share / 2 * budget)
    assert budgets.max() <= budget + more


def test_without_its_map_it_is_refused():
    model, calibration = attach(tiny_model("llama")), calibration_of(tiny_model("llama"))
    with pytest.raises(UserError, match=r"'kvzap' needs a map .* hidden_maps: \[kvzap\]"):
        make_cache(model, "kvzap", BUDGET)
    del calibration["scorer"]["kvzap"], calibration["scorer"]["hidden"]
    for name, wanted in (("kvzap", "kvzap"), ("hidden", "hidden")):
        with pytest.raises(UserError, match=rf"features '{wanted}'.* hidden_maps: \[{wanted}\]"):
            cache_of(model, name, calibration=calibration)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_what_its_map_is_fitted_to_is_kvzip_plus_on_what_attention_is_given(kind):
    model = model_of(kind)
    layers = list(geometry_of(model).layers)
    wanted = by_definition(model, layers)
    between = model(torch.tensor([CONTEXT]), output_hidden_states=True).hidden_states
    attach(model)
    parts = read(model, TOKENIZER, CONTEXT, rotations_of(model, layers), ["kvzap"])
    for layer, part, scores in zip(layers, parts, wanted, strict=True):
        given = model.model.layers[layer].input_layernorm(between[layer])
        assert_close(part.given, given, atol=1e-5, rtol=1e-4)
        assert_close(part.plus[0], scores, atol=1e-6, rtol=1e-4)
    assert hooks_of(model) == 0


def test_its_fit_is_ridge_regression_on_logarithms():
    """Against least squares on standardised features with rows that stand for the penalty."""
    generator = torch.Generator().manual_seed(1)
    parts = []
    for count in (40, 90):
        hidden = torch.randn(1, count, 5, generator=generator) + 10
        plus = torch.rand(1, 2, count, generator=generator) ** 8
        plus[0, 0, 20] = 0  # has no logarithm
        plus[0, :, :9] = 0  # what a chat begins with is not repeated
        parts.append(Read(hidden[:, None], hidden[:, None], plus, hidden, plus))
    moments = Moments(AIMS["kvzap"])
    for part in parts:
        moments.add(part)
    scorer = moments.solve(2)
    x = np.concatenate([part.given[0, 9:].numpy() for part in parts]).astype(np.float64)
    y = np.concatenate([part.plus[0, :, 9:].T.numpy() for part in parts]).astype(np.float64)
    y = np.log(np.maximum(y, LEAST))
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    design = np.concatenate([(x - mean) / deviation, np.sqrt(1e-3 * len(x)) * np.eye(5)])
    goal = np.concatenate([y - y.mean(axis=0), np.zeros((5, 2))])
    solution = np.linalg.lstsq(design, goal, rcond=None)[0]
    wanted = ((x - mean) / deviation) @ solution + y.mean(axis=0)
    got = np.concatenate([scorer(part.given)[0, :, 9:].T.numpy() for part in parts])
    np.testing.assert_allclose(got, wanted, atol=2e-3)


def test_maps_from_hidden_states_leave_the_others_as_they_are():
    model = attach(model_of("llama"))
    options = ([CONTEXT], [CONTEXT[::-1]], [0.0, 0.2, 1.0])
    plain = fit(model, TOKENIZER, *options)
    more = fit(model, TOKENIZER, *options, ["hidden", "kvzap"])
    assert set(plain) == {"group", "own"}
    assert set(more) == {"group", "own", "hidden", "kvzap"}
    for name in plain:
        for one, other in zip(plain[name].scorers, more[name].scorers, strict=True):
            assert torch.equal(one.weights, other.weights)
            assert torch.equal(one.bias, other.bias)
        assert torch.equal(plain[name].quality.ranks, more[name].quality.ranks)
    assert more["hidden"].scorers[0].weights.shape == (48, 3)
