"""Policies: what each keeps, seen through the cache; groups, pooled budgets, rules."""

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, calibration_of, tiny_model

from kvbudget import UserError, attach, make_cache
from kvbudget.cache.budget import Geometry
from kvbudget.cache.plan import Plan
from kvbudget.cache.policy import Candidates
from kvbudget.cache.slots import Tokens
from kvbudget.policies.fitted import Fitted
from kvbudget.policies.make import make_policy
from kvbudget.policies.rules import RULES

GEOMETRY = Geometry(layers=(0, 1, 2, 3), kv_heads=3, query_heads=6, head_dim=16)


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (1, count), generator=generator)


@pytest.fixture(scope="module")
def model():
    return attach(tiny_model("llama"))


@pytest.fixture
def calibration(model):
    made = calibration_of(model)
    made["classes"] = [["retrieval", "retrieval", "local"]] * 4
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


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_snapkv_keeps_its_window_and_what_it_attended_to(model, pooling):
    """By the definition, from eager attention: the last 32 queries, pooled over 7 neighbours
    before the window."""
    stock = tiny_model("llama")
    stock.set_attn_implementation("eager")
    output = stock(tokens(150), output_attentions=True)
    options = {"method": "snapkv", "budget": 70, "pooling": pooling}
    for index, layer in enumerate(kept(model, tokens(150), **options)):
        attention = output.attentions[index][0].unflatten(0, (3, 2))[:, :, -32:].sum(dim=(1, 2))
        for head, positions in enumerate(layer):
            around = [attention[head, max(0, j - 3) : min(j + 4, 118)] for j in range(118)]
            pooled = [own.max() if pooling == "max" else own.sum() / 7 for own in around]
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


def test_a_batch_pools_by_the_means_of_its_best_scores():
    policy = make_policy("head-aware", allocation="uniform", rule="diversity", safeguard=0.0)
    one, other = torch.tensor([[9.0, 0, 3], [1, 7, 2]]), torch.tensor([[4.0, 5, 1], [6, 4, 2]])
    # Means of the best, second best and third best: 8, 2.5, .5 and 5.5, 4, 1.5.
    assert policy.redistribute(0, [one, other], [1, 2]) == [1, 2]
    assert policy.redistribute(0, [one, other], [2, 2]) == [2, 2]
    assert policy.redistribute(0, [one, other - 2], [1, 1]) == [1, 1]
    assert policy.redistribute(0, [one, other - 4], [1, 1]) == [2, 0]


@pytest.mark.parametrize("allocation", ["floored", "predicted", "curves", "class", "uniform"])
def test_budgets_add_up_to_the_total(calibration, allocation):
    policy = make_policy("head-aware", Fitted(calibration), allocation=allocation, rule="diversity")
    for budget, prompt in [(20, 60), (100, 3000), (500, 1000), (64, 64), (64, 30)]:
        budgets = np.array(policy.budgets(GEOMETRY, budget, prompt))
        assert budgets.shape == (4, 3)
        assert budgets.sum() == budget * 12
        assert budgets.min() >= 12
        assert budgets.max() <= max(prompt, budget)


def test_every_head_is_sure_of_a_fifth_of_an_equal_budget(calibration):
    nobody = [[[0.0] * 6 + [1.0]] * 3] * 4
    nobody[1] = [[0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0]] * 3
    calibration["scorer"]["group"]["spread"] = nobody  # heads of one layer take all there is
    floored, free = (
        np.array(
            make_policy("head-aware", Fitted(calibration), allocation=allocation).budgets(
                GEOMETRY, 500, 20_000
            )
        )
        for allocation in ("floored", "predicted")
    )
    others = [0, 2, 3]
    assert (floored[others] == 100).all()
    assert (free[others] == 12).all()
    assert floored[1].tolist() == [1700] * 3
    assert floored.sum() == free.sum() == 500 * 12


def test_classes_get_budgets_in_their_order(calibration):
    budgets = np.array(
        make_policy("head-aware", Fitted(calibration), allocation="class").budgets(
            GEOMETRY, 100, 3000
        )
    )
    assert (budgets[:, :2] > budgets[:, 2:]).all()


def test_a_head_whose_loss_hurts_the_answer_gets_more(calibration):
    curve = np.array([1.0, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0])
    weights = np.array([[0.01] * 3] * 3 + [[0.01, 1.0, 0.01]])
    calibration["loss"]["output"]["diversity"] = [[curve.tolist()] * 3] * 4
    calibration["loss"]["answer"]["diversity"] = (weights[..., None] * curve).tolist()
    options = {"allocation": "curves", "rule": "diversity"}
    answer, output = (
        np.array(
            make_policy("head-aware", Fitted(calibration), loss=loss, **options).budgets(
                GEOMETRY, 100, 1000
            )
        )
        for loss in ("answer", "output")
    )
    assert answer[3, 1] == answer.max() > np.median(answer)
    assert answer[3, 1] > output[3, 1]


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
        (
            {"allocation": "best"},
            "allocation must be one of floored, predicted, curves, class, uniform",
        ),
        (
            {"rule": "newest"},
            "rule must be one of predicted, diversity, attention, window, recency",
        ),
        ({"safeguard": 1.5}, "safeguard must be a number from 0 to 1"),
        ({"features": "all"}, "features must be one of group, own, hidden, not 'all'"),
        ({"loss": "l2"}, "loss must be one of answer, output, mass, not 'l2'"),
    ],
)
def test_bad_options_are_named(calibration, options, message):
    with pytest.raises(UserError, match=message):
        make_policy("head-aware", Fitted(calibration), **options)


def test_a_calibration_of_another_model_or_without_the_curves_is_refused(calibration):
    other = Geometry(layers=(0, 1), kv_heads=3, query_heads=6, head_dim=16)
    with pytest.raises(UserError, match="make the calibration anew"):
        make_policy("head-aware", Fitted(calibration)).budgets(other, 100, 1000)
    with pytest.raises(UserError, match="no answer curves of rule 'window', only of diversity"):
        make_policy("head-aware", Fitted(calibration), rule="window", allocation="curves").budgets(
            GEOMETRY, 100, 1000
        )
