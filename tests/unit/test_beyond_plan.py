"""The bytes that real caches hold against the plan: what aggregation lets pass, and what not."""

import pytest
import torch
from tiny import VOCABULARY, tiny_calibration, tiny_model

from kvbudget import attach, make_cache
from kvbudget.analysis.checks import beyond_plan
from kvbudget.cache.streaming import StreamingCache
from kvbudget.run.translation import Translator
from kvbudget.study.plan import Planned
from kvbudget.study.records import Cell

PROMPT = 400
METHODS = [
    ("h2o", {}),
    ("streaming-llm", {"positions": "absolute"}),
    ("snapkv", {"safeguard": 0.2}),
    ("keydiff", {}),
    ("head-aware", {"calibration": tiny_calibration(4, 3, 6)}),
]
CACHES = [
    ("streaming-llm", {}),  # saves its sinks, and is not quantised
    *((policy, {**own, "bits": bits}) for policy, own in METHODS for bits in (None, 2, 4, 8)),
    ("keydiff", {"bits": 4, "value_bits": 2}),
]


@pytest.fixture(scope="module")
def model():
    """In bfloat16, where a quantised cache has as many bytes as its plan."""
    return attach(tiny_model().to(torch.bfloat16))


def problems(cache, policy: str, planned: int) -> list:
    """What aggregation says of a cell with such a cache and planned bytes."""
    record = {
        "samples": [{"budget_tokens": cache.plan.tokens()}],
        "memory": {
            "cache_bytes_planned": planned,
            "cache_bytes_allocated": cache.allocated_bytes(),
        },
        "allocation": {
            "slots": [[len(kept) for kept in layer.kept_positions()] for layer in cache.budgeted]
        },
    }
    spec = {
        "model": "m",
        "task": {"name": "t"},
        "length": 1,
        "budget": 1,
        "method": {"name": policy, "policy": policy},
    }
    return beyond_plan([Cell(Planned(spec, "code", "identity", "text", None, ()), record)])


@pytest.mark.parametrize("budget", [20, "20%", "90%"])
@pytest.mark.parametrize("policy, options", CACHES)
@torch.no_grad()
def test_a_cache_holds_what_it_plans(model, policy, options, budget):
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(VOCABULARY, (1, PROMPT), generator=generator)
    cache = make_cache(model, policy, budget, prompt_tokens=PROMPT, **options)
    for piece in (prompt[:, :-40], prompt[:, -40:-1], prompt[:, -1:]):
        model(piece, past_key_values=cache)
    planned = cache.planned_bytes(itemsize=2)
    assert not problems(cache, policy, planned)
    if budget == "20%":  # indices weigh most in so small a head, and most of all in few bits
        assert problems(cache, policy, planned // 3)


@pytest.mark.parametrize("policy", ["h2o", "keydiff"])
@torch.no_grad()
def test_so_does_the_source_of_a_translation(model, policy):
    words = torch.arange(8, 88).view(-1, 2).tolist()
    cache = make_cache(model, policy, "20%", prompt_tokens=80)
    streaming = StreamingCache(cache)
    for _ in Translator(model, streaming, words, k=3, phi="auto").follow([5, 6], words):
        pass
    assert streaming.target_bytes() > cache.allocated_bytes()
    planned = cache.planned_bytes(itemsize=2)
    assert not problems(cache, policy, planned)
    assert problems(cache, policy, planned // 2)
