"""The originals' definitions, worked by hand on one attention matrix of eight tokens."""

import pytest
import torch

from kvbudget.cache import budget as budgets
from kvbudget.cache.budget import Geometry
from kvbudget.cache.layer import BudgetedLayer, LayerOptions
from kvbudget.cache.plan import Plan
from kvbudget.policies import received, rules, snapkv
from kvbudget.policies.make import make_policy

#: What each token attends to; a row adds up to 1.
ATTENTION = [
    [1.0],
    [0.5, 0.5],
    [0.2, 0.6, 0.2],
    [0.1, 0.5, 0.1, 0.3],
    [0.1, 0.1, 0.5, 0.1, 0.2],
    [0.1, 0.4, 0.1, 0.1, 0.1, 0.2],
    [0.05, 0.15, 0.025, 0.3, 0.025, 0.05, 0.4],
    [0.05, 0.15, 0.025, 0.3, 0.025, 0.05, 0.3, 0.1],
]


@pytest.fixture(autouse=True)
def small_budgets(monkeypatch):
    monkeypatch.setattr(budgets, "MINIMUM", 4)


def read(rows: list[list[float]], method: str, budget: int, *, prompt: int, **options):
    """A layer of one head after it has read a prompt at once and the other tokens one by one."""
    count = len(rows)
    # Keys are unit vectors, so that a query's parts are the logarithms of its attention.
    queries = torch.full((1, 1, count, count), -100.0)
    for token, row in enumerate(rows):
        queries[0, 0, token, : token + 1] = torch.tensor(row).log()
    keys = torch.eye(count)[None, None]
    geometry = Geometry(layers=(0,), kv_heads=1, query_heads=1, head_dim=count)
    plan = Plan(make_policy(method, **options), geometry, budget, prompt)
    layer = BudgetedLayer(0, 1, LayerOptions(plan, stride=1))
    for piece in torch.arange(count).split([prompt, *[1] * (count - prompt)]):
        layer.update(keys[:, :, piece], keys[:, :, piece])
        layer.attend(queries[:, :, piece], scaling=1.0, softcap=None, mask=None)
    return layer


def kept(layer: BudgetedLayer) -> list[int]:
    (own,) = layer.kept_positions()
    return own.tolist()


@pytest.mark.parametrize(("budget", "expected"), [(4, [0, 1, 6, 7]), (6, [0, 1, 3, 5, 6, 7])])
def test_h2o_after_a_prompt(budget, expected):
    """Half of the budget is the newest tokens. The others have, in columns summed,

    0: 2.1   1: 2.4   2: .95   3: 1.1   4: .35   5: .3, and the best of them are the other half.
    """
    assert kept(read(ATTENTION, "h2o", budget, prompt=8)) == expected


def test_h2o_token_by_token_loses_what_would_have_counted_later():
    """Six tokens fill the budget. With the seventh the sums are 0: 2.05, 1: 2.25, 2: .925, 3: .8,
    and 4 to 6 are recent: 3 goes, which a prompt of eight would have kept. The eighth attends to
    what is left, its row over .7: 2 has .925 + .025/.7, and 4 has .325 + .025/.7, and goes."""
    layer = read(ATTENTION[:7], "h2o", 6, prompt=6)
    assert kept(layer) == [0, 1, 2, 4, 5, 6]
    layer = read(ATTENTION, "h2o", 6, prompt=6)
    assert kept(layer) == [0, 1, 2, 5, 6, 7]
    (held,) = layer.store.slots.tokens()
    sums = dict(
        zip(held.positions[0, 0].tolist(), held.signals["attention"][0, 0].tolist(), strict=True)
    )
    assert sums == pytest.approx(
        {
            0: 2.05 + 0.05 / 0.7,
            1: 2.25 + 0.15 / 0.7,
            2: 0.925 + 0.025 / 0.7,
            5: 0.25 + 0.05 / 0.7,
            6: 0.4 + 0.3 / 0.7,
            7: 0.1 / 0.7,
        }
    )


def test_streaming_llm_in_the_example_of_its_paper():
    """Four sinks and three recent tokens: before the ninth is decoded, [0, 1, 2, 3, 6, 7, 8]."""
    even = [[1 / (token + 1)] * (token + 1) for token in range(9)]
    for prompt in (9, 5):
        layer = read(even, "streaming-llm", 7, prompt=prompt, positions="absolute")
        assert kept(layer) == [0, 1, 2, 3, 6, 7, 8]


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_snapkv_after_a_prompt(monkeypatch, pooling):
    """A window of two queries, pooled over three tokens. Before the window the two attend to

    0: .1   1: .3   2: .05   3: .6   4: .05   5: .1; three of these are kept beside the window.
    The most of three is .3 .3 .6 .6 .6 .1, their sum .4 .45 .95 .7 .75 .15: tokens 2 to 4, though
    1 gets more than 2 and 4, and though the window's own .7 stand beside token 5.
    """
    monkeypatch.setattr(received, "OBSERVATION", 2)
    monkeypatch.setattr(snapkv, "OBSERVATION", 2)
    monkeypatch.setattr(rules, "POOLING", 3)
    assert kept(read(ATTENTION, "snapkv", 5, prompt=8, pooling=pooling)) == [2, 3, 4, 6, 7]
