"""Policies: what each keeps, seen through the cache; groups, pooled budgets, rules."""

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, tiny_calibration, tiny_model

from kvbudget import UserError, attach, make_cache
from kvbudget.cache.budget import Geometry
from kvbudget.cache.cache import geometry_of
from kvbudget.cache.plan import Plan
from kvbudget.cache.policy import Candidates
from kvbudget.cache.slots import Tokens
from kvbudget.policies.make import make_policy
from kvbudget.policies.rules import RULES, relative

GEOMETRY = Geometry(layers=(0, 1, 2, 3), kv_heads=3, query_heads=6, head_dim=16)


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (1, count), generator=generator)


@pytest.fixture(scope="module")
def model():
    return attach(tiny_model("llama"))


@pytest.fixture
def calibration(model):
    geometry = geometry_of(model)
    made = tiny_calibration(len(geometry.layers), geometry.kv_heads, geometry.query_heads)
    made["heads"]["retrieval"] = [[0.9, 0, 0.9, 0, 0, 0]] * 4  # KV heads 0 and 1 retrieve
    made["heads"]["induction"] = [[0.0] * 6] * 4  # KV head 2 is local
    return made


def kept(model, ids: torch.Tensor, **options) -> list[list[list[int]]]:
    cache = make_cache(model, **options)
    model(ids, past_key_values=cache)
    return [[head.tolist() for head in layer.kept_positions()] for layer in cache.budgeted]


def test_streaming_llm_keeps_sinks_and_the_most_recent(model):
    for layer in kept(model, tokens(60), method="streaming-llm", budget=16):
        assert layer == [[0, 1, 2, 3, *range(48, 60)]] * 3


def test_h2o_keeps_recent_tokens_and_heavy_hitters(model):
    """The recent half, and the tokens of the rest that received most attention."""
    attention = {}
    stock = tiny_model("llama")
    stock.set_attn_implementation("eager")
    output = stock(tokens(60), output_attentions=True)
    for index, each in enumerate(output.attentions):
        attention[index] = each[0].unflatten(0, (3, 2)).sum(dim=(1, 2))
    for index, layer in enumerate(kept(model, tokens(60), method="h2o", budget=16)):
        for head, positions in enumerate(layer):
            heavy = attention[index][head, :52].topk(8).indices.sort().values.tolist()
            assert positions == [*heavy, *range(52, 60)]


def test_heads_of_a_group_keep_the_same_tokens_at_lambda_one(model, calibration):
    common = {
        "method": "head-aware", "budget": 20, "calibration": calibration, "allocation": "uniform",
        "safeguard": 1.0,
    }  # fmt: skip
    apart = kept(model, tokens(80), group_mix=0.0, **common)
    together = kept(model, tokens(80), group_mix=1.0, **common)
    between = kept(model, tokens(80), group_mix=0.5, **common)
    for independent, shared, mixed in zip(apart, together, between, strict=True):
        assert independent[0] != independent[1]
        assert shared[0] == shared[1]  # one group
        assert shared[2] == independent[2]  # alone in its group
        overlap = len(set(mixed[0]) & set(mixed[1]))
        assert overlap >= len(set(independent[0]) & set(independent[1]))


def test_groups_agree_after_decoding_too(model, calibration):
    cache = make_cache(
        model,
        "head-aware",
        20,
        calibration=calibration,
        allocation="uniform",
        group_mix=1.0,
        safeguard=1.0,
    )
    model(tokens(80), past_key_values=cache)
    for seed in range(12):
        model(tokens(1, seed), past_key_values=cache)
    for layer in cache.budgeted:
        first, second, _ = layer.kept_positions()
        assert torch.equal(first, second)


def test_pooled_budgets_go_to_the_best_scores_of_the_group():
    """By hand: two heads of one group with 4 tokens each, half of them guaranteed."""
    policy = make_policy("head-aware", allocation="uniform", safeguard=0.5)
    scores = [
        torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]]),
        torch.tensor([[0.3, 0.2, 0.1, 0.1, 0.1, 0.1]]),
    ]
    assert policy.redistribute(0, scores, [4, 4]) == [6, 2]
    assert make_policy("head-aware", safeguard=1.0).redistribute(0, scores, [4, 4]) == [4, 4]
    assert policy.redistribute(0, scores, [8, 8]) == [8, 8]  # everything fits


def test_snapkv_keeps_its_window_and_what_it_attended_to(model):
    """By the definition, from eager attention: the last 32 queries, pooled over 7 neighbours."""
    stock = tiny_model("llama")
    stock.set_attn_implementation("eager")
    output = stock(tokens(150), output_attentions=True)
    for index, layer in enumerate(kept(model, tokens(150), method="snapkv", budget=70)):
        attention = output.attentions[index][0].unflatten(0, (3, 2))[:, :, -32:].sum(dim=(1, 2))
        for head, positions in enumerate(layer):
            pooled = [attention[head, max(0, j - 3) : j + 4].max() for j in range(118)]
            best = torch.stack(pooled).sort(descending=True, stable=True).indices[:38]
            assert positions == [*best.sort().values.tolist(), *range(118, 150)]


def test_keydiff_keeps_the_keys_least_like_the_mean(model):
    cache = make_cache(model, "full")
    model(tokens(60), past_key_values=cache)
    for index, layer in enumerate(kept(model, tokens(60), method="keydiff", budget=16)):
        (everything,) = cache.layers[index].store.slots.tokens()
        keys = everything.keys[0] / everything.keys[0].norm(dim=-1, keepdim=True)
        for head, positions in enumerate(layer):
            cosines = torch.cosine_similarity(keys[head], keys[head].mean(0)[None], dim=-1)
            best = cosines[:59].sort(stable=True).indices[:15]
            assert positions == [*best.sort().values.tolist(), 59]


@pytest.mark.parametrize("method", ["snapkv", "keydiff"])
def test_adakv_spends_one_total_unevenly(model, method):
    for layer in kept(model, tokens(90), method=method, budget=30, safeguard=0.2):
        counts = [len(head) for head in layer]
        assert sum(counts) == 3 * 30
        assert min(counts) >= 0.2 * 30
        assert len(set(counts)) > 1
    with pytest.raises(UserError, match=r"safeguard must be a number from 0 to 1, not 1\.5"):
        make_policy(method, safeguard=1.5)


def test_pooled_budgets_refuse_a_batch():
    policy = make_policy("head-aware", allocation="uniform", safeguard=0.5)
    with pytest.raises(UserError, match="batches of one"):
        policy.redistribute(0, [torch.ones(2, 5)], [3])


@pytest.mark.parametrize("allocation", ["curves", "class", "uniform"])
def test_budgets_add_up_to_the_total(calibration, allocation):
    policy = make_policy("head-aware", calibration, allocation=allocation)
    for budget, prompt in [(20, 60), (100, 3000), (500, 1000), (64, 64), (64, 30)]:
        budgets = np.array(policy.budgets(GEOMETRY, budget, prompt))
        assert budgets.shape == (4, 3)
        assert budgets.sum() == budget * 12
        assert budgets.min() >= 12
        assert budgets.max() <= max(prompt, budget)


def test_classes_get_budgets_in_their_order(calibration):
    budgets = np.array(
        make_policy("head-aware", calibration, allocation="class").budgets(GEOMETRY, 100, 3000)
    )
    assert (budgets[:, :2] > budgets[:, 2:]).all()


def test_a_head_whose_loss_hurts_the_answer_gets_more(calibration):
    curve = np.array([1.0, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0])
    weights = np.array([[0.01] * 3] * 3 + [[0.01, 1.0, 0.01]])
    calibration["loss"]["output"]["diversity"] = [[curve.tolist()] * 3] * 4
    calibration["loss"]["answer"]["diversity"] = (weights[..., None] * curve).tolist()
    answer = np.array(make_policy("head-aware", calibration).budgets(GEOMETRY, 100, 1000))
    output = np.array(
        make_policy("head-aware", calibration, loss="output").budgets(GEOMETRY, 100, 1000)
    )
    assert answer[3, 1] == answer.max() > np.median(answer)
    assert answer[3, 1] > output[3, 1]


def test_the_rule_of_a_head_is_the_one_that_loses_least(calibration):
    curves = calibration["loss"]["output"]
    for name in curves:
        curves[name] = [[[1.0, 0.9, 0.8, 0.7, 0.5, 0.3, 0.0]] * 3] * 4
    curves["window"] = [[[1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]] * 2 + curves["recency"][0][:1]] * 4
    policy = make_policy(
        "head-aware", calibration, loss="output", rule="per-head", allocation="uniform"
    )
    policy.budgets(GEOMETRY, 100, 1000)
    assert [row[:2] for row in policy.rules] == [["window", "window"]] * 4
    assert all(row[2] != "window" for row in policy.rules)


def test_rules_rank_as_their_definitions_say():
    keys = torch.tensor([[1.0, 0], [1, 0.1], [-1, 0.2], [1, -0.1], [1, 0]])[None, None]
    sums = {
        "attention": torch.tensor([[[1.0, 5, 2, 3, 0]]]),
        "window": torch.tensor([[[0.0, 0, 9, 0, 1]]]),
    }
    held = Tokens((0,), keys, keys, torch.arange(5).view(1, 1, 5), sums)
    candidates = Candidates(held, layer=0, seen=5, budgets=(3,))
    assert RULES["recency"](candidates).argmax() == 4
    assert RULES["attention"](candidates)[0, 0].tolist() == [1, 5, 2, 3, 0]
    assert RULES["window"](candidates)[0, 0].unique().numel() == 1  # all within the neighbourhood
    assert RULES["diversity"](candidates).argmax() == 2
    for rule in RULES.values():
        assert (rule(candidates) >= 0).all()
        assert relative(rule(candidates), candidates).mean() == pytest.approx(1)


def test_padding_goes_first_and_the_newest_stays():
    positions = torch.tensor([[[-1, -1, 0, 1, 2, 3, 4, 5, 6, 7]]])
    keys = torch.zeros(1, 1, 10, 2)
    held = Tokens((0,), keys, keys, positions, {})
    candidates = Candidates(held, layer=0, seen=8, budgets=(5,))
    scores = candidates.protect(torch.zeros(1, 1, 10))[0, 0].tolist()
    assert scores[:2] == [float("-inf")] * 2
    assert scores[2:6] == [float("inf")] * 4
    assert scores[-1] == float("inf")


def test_a_share_is_resolved_on_the_prompt():
    plan = Plan(make_policy("h2o"), GEOMETRY, "20%")
    plan.begin(1000)
    plan.begin(30)
    assert plan.tokens() == 200
    assert plan.budgets() == [[200] * 3] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allocation": "best"}, "allocation must be one of curves, class, uniform"),
        ({"rule": "newest"}, "rule must be one of attention, window, diversity, recency, per-head"),
        ({"safeguard": 1.5}, "safeguard must be a number from 0 to 1"),
        ({"loss": "l2"}, "loss must be one of answer, output, mass, not 'l2'"),
    ],
)
def test_bad_options_are_named(calibration, options, message):
    with pytest.raises(UserError, match=message):
        make_policy("head-aware", calibration, **options)


def test_a_calibration_of_another_model_or_without_the_curves_is_refused(calibration):
    other = Geometry(layers=(0, 1), kv_heads=3, query_heads=6, head_dim=16)
    with pytest.raises(UserError, match="make the calibration anew"):
        make_policy("head-aware", calibration).budgets(other, 100, 1000)
    with pytest.raises(UserError, match="no answer curves of rule 'window', only of diversity"):
        make_policy("head-aware", calibration, rule="window").budgets(GEOMETRY, 100, 1000)
