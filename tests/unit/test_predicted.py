"""The predicted score: what it is computed from, how it is fitted, and what is kept by it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import Oracle
from scipy.stats import spearmanr
from tiny import VOCABULARY, calibration_of, tiny_calibration, tiny_model
from torch.testing import assert_close

from kvbudget import attach, make_cache
from kvbudget.cache.budget import SINKS, Geometry
from kvbudget.cache.cache import geometry_of
from kvbudget.cache.positions import Rotation
from kvbudget.cache.signals import Arrival
from kvbudget.calibration.quality import judge, mean, spread
from kvbudget.calibration.records import _THINGS, contexts
from kvbudget.calibration.scorer import AIMS, FLOOR, Moments, Read
from kvbudget.errors import UserError
from kvbudget.policies.allocate import at_one_level
from kvbudget.policies.fitted import Fitted
from kvbudget.policies.make import make_policy
from kvbudget.policies.predicted import Predicted, Scorer, features, owners

BUDGET = 20
KINDS = ["llama", "qwen3", "gemma3_text"]


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (1, count), generator=generator)


def by_hand(kind: str, ids: torch.Tensor, calibration: dict) -> dict[int, torch.Tensor]:
    """Scores `(kv_heads, tokens)` of full-attention layers, from what a stock model projects."""
    stock, seen = tiny_model(kind), {}
    for index, layer in enumerate(stock.model.layers):
        attention = layer.self_attn
        # What is rotated: after the norm of keys, where there is one.
        key = getattr(attention, "k_norm", attention.k_proj)
        for name, module in (("key", key), ("value", attention.v_proj)):
            module.register_forward_hook(
                lambda _, __, output, place=(index, name): seen.update({place: output[0]})
            )
    stock(ids)
    scores = {}
    full = [i for i, layer in enumerate(stock.model.layers) if not _slides(layer)]
    for place, index in enumerate(full):
        key, value = seen[index, "key"], seen[index, "value"]
        key = key.transpose(0, 1) if kind.startswith("gemma3") else key.view(ids.shape[1], 3, -1)
        value = value.view(ids.shape[1], 3, -1)
        weights = torch.tensor(calibration["scorer"]["group"]["weights"][place])
        bias = torch.tensor(calibration["scorer"]["group"]["bias"][place])
        scores[index] = torch.zeros(3, ids.shape[1])
        for token in range(ids.shape[1]):
            norms = [key[token].norm(dim=-1), value[token].norm(dim=-1)]
            own = torch.cat([key[token].flatten(), value[token].flatten(), *norms])
            scores[index][:, token] = own @ weights + bias
    return scores


def _slides(layer) -> bool:
    return bool(getattr(layer.self_attn, "sliding_window", None))


@pytest.mark.parametrize("kind", KINDS)
def test_heads_keep_the_tokens_of_the_highest_predicted_scores(kind):
    model, ids = attach(tiny_model(kind)), tokens(60)
    calibration = calibration_of(model)
    cache = make_cache(model, "head-aware", BUDGET, calibration=calibration)
    model(ids, past_key_values=cache)
    expected = by_hand(kind, ids, calibration)
    assert expected
    for (index, scores), budgets in zip(expected.items(), cache.plan.budgets(), strict=True):
        for head, positions in enumerate(cache.kept_positions(index)):
            assert len(positions) == budgets[head]
            assert {*range(4), *range(52, 60)} <= set(positions.tolist())
            kept = torch.isin(torch.arange(60), positions)
            evicted = scores[head][~kept]
            middle = scores[head][SINKS:52][kept[SINKS:52]]
            # A token that comes twice has one score twice, in the first layer.
            assert middle.numel() == 0 or middle.min() >= evicted.max() - 1e-4


@pytest.mark.parametrize("pieces", [[60], [25, 1, 34], [7] * 8 + [4], [40, *[1] * 20]])
def test_scores_are_the_same_however_tokens_come(pieces):
    """And in a quantised cache, too, as they come from exact keys and values."""
    model, ids = attach(tiny_model("llama")), tokens(60)
    calibration = calibration_of(model)
    expected = by_hand("llama", ids, calibration)
    for bits in (None, 4):
        cache = make_cache(
            model, "head-aware", 60, calibration=calibration, prompt_tokens=60, bits=bits,
            allocation="uniform",
        )  # fmt: skip
        for piece in ids.split(pieces, dim=1):
            model(piece, past_key_values=cache)
        # What later layers see depends on how the first have stored.
        layer = cache.budgeted[0] if bits else cache.budgeted[-1]
        (held,) = layer.store.slots.tokens()
        order = held.positions[0, 0].long()
        wanted = expected[0 if bits else 3][:, order]
        assert_close(held.signals["predicted"][0], wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("turning", [0, 8, 16])
@pytest.mark.parametrize("padding", [0, 2])
def test_scores_follow_from_keys_that_are_turned_back(turning, interleaved, padding):
    """Though it is their weights that are turned; in models that turn a part of a key, too."""
    heads, count, first = 3, 7, 5000
    generator = torch.Generator().manual_seed(3)
    rotation = Rotation(torch.rand(turning // 2, generator=generator), interleaved)
    key, value = torch.randn(2, 2, heads, count, 16, generator=generator)
    weights = torch.randn(2 * heads * 17, heads, generator=generator)
    scorer = Scorer(weights, torch.randn(heads, generator=generator))
    order = torch.arange(first, first + count).repeat(2, 1)
    order[1] -= padding
    rotated = rotation.move(key, order[:, None, :, None])
    positions = order[:, None].expand(2, heads, count)
    start = None if padding else first
    arrival = Arrival(None, rotated, value, positions, start, False, rotation)
    expected = features(key, value) @ scorer.weights + scorer.bias
    assert_close(Predicted(scorer).arrive(arrival), expected.mT, atol=1e-4, rtol=1e-5)
    assert_close(arrival.unrotated_key, key, atol=1e-5, rtol=1e-5)


def test_padding_changes_no_score():
    model, ids = attach(tiny_model("llama")), tokens(40)
    calibration = calibration_of(model)
    both = torch.cat((ids, torch.cat((torch.zeros(1, 10, dtype=torch.long), ids[:, :30]), 1)))
    mask = torch.ones_like(both)
    mask[1, :10] = 0
    cache = make_cache(model, "head-aware", BUDGET, calibration=calibration)
    model(both, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
          past_key_values=cache)  # fmt: skip
    expected = by_hand("llama", ids[:, :30], calibration)
    for index in range(4):
        for held in cache.budgeted[index].store.slots.tokens():
            for i, head in enumerate(held.heads):
                positions = held.positions[1, i].long()
                own = held.signals["predicted"][1, i][positions >= 0]
                wanted = expected[index][head][positions[positions >= 0]]
                assert_close(own, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_the_masked_oracle(kind, bits):
    model = attach(tiny_model(kind))
    options = {"calibration": calibration_of(model), "stride": 2, "bits": bits}
    ours, oracle = make_cache(model, "head-aware", BUDGET, **options), Oracle(model)
    for piece in tokens(90).split([50, 7, *[1] * 33], dim=1):
        expected = oracle.forward(piece, ours)
        if bits is None:
            assert_close(model(piece, past_key_values=ours).logits, expected, atol=1e-5, rtol=1e-5)
        else:
            break


def test_budgets_are_what_heads_keep_of_typical_text():
    calibration = tiny_calibration(1, 2, 2)
    calibration["shares"] = [0.0, 0.2, 1.0]
    calibration["scorer"]["group"]["spread"] = [[[0.0, 0.3, 1.0], [0.0, 0.1, 1.0]]]
    policy = make_policy("head-aware", Fitted(calibration))
    geometry = Geometry(layers=(0,), kv_heads=2, query_heads=2, head_dim=16)
    # Of 0.1 of all tokens the heads keep 0.15 and 0.05; of more, more alike.
    assert policy.budgets(geometry, 100, 1000) == [[150, 50]]
    assert policy.budgets(geometry, 200, 1000) == [[300, 100]]
    assert policy.budgets(geometry, 600, 1000) == [[650, 550]]
    # The other head's share of 36 tokens would be 9, below what each keeps at least.
    assert policy.budgets(geometry, 18, 1000) == [[24, 12]]


@given(
    st.lists(st.floats(0.2, 5), min_size=1, max_size=12),
    st.integers(12, 1000),
    st.integers(0, 500),
)
def test_heads_compete_at_one_level(powers, budget, more):
    """Beside the floor, the heads' budgets are what they keep at one and the same level."""
    heads, tokens, floor, exponents = len(powers), budget + more, 12, np.array(powers)
    found = at_one_level(lambda level: level**exponents, budget * heads, floor, tokens)
    assert found.sum() == budget * heads and found.min() >= floor and found.max() <= tokens
    # The levels at which a head keeps a token less and a token more have one in common.
    above = found > floor
    lowest = ((found[above] - 1) / tokens) ** (1 / exponents[above])
    highest = ((found[above] + 1) / tokens) ** (1 / exponents[above])
    assert not above.any() or lowest.max() <= highest.min() + 1e-9


def test_a_spread_counts_what_a_pool_of_all_heads_keeps():
    scores = torch.tensor([[[9.0, 8, 1, 2], [7, 3, 0, -1]]])
    found = spread(scores, [0.0, 0.25, 0.5, 1.0])
    assert found.tolist() == [[[0.0, 0.5, 0.5, 1.0], [0.0, 0.0, 0.5, 1.0]]]


@pytest.mark.parametrize("alone", [False, True])
def test_the_fit_is_ridge_regression_on_cut_logarithms(alone):
    """Against least squares on standardised features with rows that stand for the penalty, of all
    heads or of each head's own."""
    groups = [[0], [1]] if alone else [[0, 1]]
    generator = torch.Generator().manual_seed(1)
    parts = []
    for count in (40, 90):
        key, value = torch.randn(2, 1, 2, count, 3, generator=generator)
        score = torch.rand(1, 2, count, generator=generator) ** 8
        parts.append(Read(key + 100, value, score))  # keys may have large means
    aim = AIMS["own" if alone else "group"]
    moments = Moments(aim)
    for part in parts:
        moments.add(part)
    scorer = moments.solve(2, alone)
    got = np.concatenate([scorer(aim.features(part))[0, :, 4:].T.numpy() for part in parts])
    for heads in groups:
        wanted = by_least_squares(parts, heads)
        np.testing.assert_allclose(got[:, heads], wanted, atol=2e-3)


def by_least_squares(parts: list[Read], heads: list[int]) -> np.ndarray:
    """Predicted log-scores of some heads from their keys and values, `(tokens, heads)`."""
    rows, targets = [], []
    for part in parts:
        for token in range(4, part.score.shape[-1]):
            key, value = (x[0, heads, token].numpy() for x in (part.key, part.value))
            norms = [np.linalg.norm(x, axis=-1) for x in (key, value)]
            rows.append(np.concatenate([key.ravel(), value.ravel(), *norms]))
            targets.append(np.log(np.maximum(part.score[0, heads, token].numpy(), FLOOR)))
    x, y = np.array(rows, dtype=np.float64), np.array(targets, dtype=np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    penalty = np.sqrt(1e-3 * len(x)) * np.eye(x.shape[1])
    design = np.concatenate([(x - mean) / deviation, penalty])
    goal = np.concatenate([y - y.mean(axis=0), np.zeros((x.shape[1], y.shape[1]))])
    solution = np.linalg.lstsq(design, goal, rcond=None)[0]
    return ((x - mean) / deviation) @ solution + y.mean(axis=0)


def test_quality_is_what_is_held_and_how_tokens_are_ranked():
    true = torch.tensor([[[4.0, 3, 2, 1], [0.5, 0, 0, 0]]]).repeat(1, 1, 10)
    assert judge(true, true, [1.0]).ranks.tolist() == [[pytest.approx(1), pytest.approx(1)]]
    turned = judge(-true, true, [1.0])
    assert turned.ranks.tolist() == [[pytest.approx(-1), pytest.approx(-1)]]
    # Ten each of 4, 3, 2 and 1 hold 32, 58 and 92 in a tenth, a fifth and two fifths of 80.
    predicted = torch.stack((true[0, 1], true[0, 0]))[None]  # each head has those of the other
    found = judge(predicted, true, [0.25, 1.0])
    assert found.kept.tolist() == pytest.approx([4 / 32, 5 / 58, 5 / 92])
    assert found.spread.tolist() == [[[0.0, 1.0], [0.5, 1.0]]]
    spearman = [float(spearmanr(predicted[0, head], true[0, head]).statistic) for head in (0, 1)]
    assert found.ranks[0].tolist() == pytest.approx(spearman)
    both = mean([found, judge(true, true, [0.25, 1.0])])
    assert both.kept.tolist() == pytest.approx([36 / 64, 63 / 116, 97 / 184])
    assert judge(torch.zeros(1, 1, 10), torch.rand(1, 1, 10), [1.0]).ranks.tolist() == [[0.0]]


def test_a_head_alone_is_scored_by_its_own_key_and_value():
    """The map of own features has no weight for those of other heads, and is the one asked for."""
    calibration = calibration_of(tiny_model("llama"))
    own = tiny_calibration(4, 3, 6, seed=1)["scorer"]["group"]
    foreign = owners(3, 16)[:, None] != torch.arange(3)
    own["weights"] = torch.tensor(own["weights"]).masked_fill(foreign, 0).tolist()
    calibration["scorer"]["own"] = own
    policies = [
        make_policy("head-aware", Fitted(calibration), features=seen) for seen in ("group", "own")
    ]
    generator = torch.Generator().manual_seed(2)
    key, value = torch.randn(2, 1, 3, 9, 16, generator=generator)
    changed = key.clone()
    changed[:, 1] += 1
    for policy, others in zip(policies, (False, True), strict=True):
        one, other = (policy.scorers[0](features(each, value))[0] for each in (key, changed))
        same = [torch.equal(*pair) for pair in zip(one, other, strict=True)]
        assert same == [others, False, others]
    budgets = [policy.budgets(geometry_of(tiny_model("llama")), 30, 100) for policy in policies]
    assert budgets[0] != budgets[1]
    del calibration["scorer"]["own"]
    with pytest.raises(UserError, match="has no scorer of features 'own'; make it anew with kvbu"):
        make_policy("head-aware", Fitted(calibration), features="own")


def test_contexts_of_the_scorer_are_of_the_calibration_split_and_no_needles():
    class Letters:
        bos_token_id, chat_template = None, None

        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            return [ord(letter) for letter in text]

    passages = [f"passage {number} of the text." for number in range(500)]
    made = list(contexts(Letters(), passages, [300, 600], range(4), 1))
    assert [len(ids) for ids in made] == [300] * 4 + [600] * 4
    assert made == list(contexts(Letters(), passages, [300, 600], range(4), 1))
    assert made != list(contexts(Letters(), passages, [300, 600], range(4), 2))
    texts = ["".join(map(chr, ids)) for ids in made]
    numbers = {int(word) for text in texts for word in text.split() if word.isdigit()}
    said = {n for text in texts for n in range(500) if f"passage {n} of the text." in text}
    assert said
    assert max(said) < 100  # the first fifth
    assert numbers
    assert not any("magic" in text for text in texts)
    records = [any(thing in text.lower() for thing in _THINGS) for text in texts]
    assert records == [False, True] * 4


@pytest.mark.parametrize("piece", [1, 7, 32])
def test_a_head_that_evicts_as_it_reads_ends_with_the_same_tokens(piece):
    """Where keys and values are the same, as in the first layer."""
    model, ids = attach(tiny_model("llama")), tokens(90)
    options = {"calibration": calibration_of(model), "prompt_tokens": 90, "stride": 1}
    whole = make_cache(model, "head-aware", BUDGET, **options)
    pieces = make_cache(model, "head-aware", BUDGET, prefill_chunk=piece, **options)
    for cache in (whole, pieces):
        model(ids, past_key_values=cache)
    for one, other in zip(whole.kept_positions(0), pieces.kept_positions(0), strict=True):
        assert one.tolist() == other.tolist()
