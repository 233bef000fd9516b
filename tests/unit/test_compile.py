"""Compiled models: the graph breaks at our caches, and logits are the same."""

import pytest
import torch
from tiny import tiny_calibration, tiny_model

from kvbudget import attach, make_cache

BUDGET = 12
PIECES = (20, 1, 1)  # tokens of a prompt and of decode steps


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """Two layers: compiling is slow, and a third would be compiled as the second is."""
    model = attach(tiny_model("llama"))
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    return model


def logits(model, cache) -> torch.Tensor:
    ids = torch.randint(2, 90, (1, sum(PIECES)), generator=torch.Generator().manual_seed(0))
    pieces = ids.split(PIECES, dim=1)
    return torch.cat([model(piece, past_key_values=cache).logits for piece in pieces], dim=1)


@pytest.mark.parametrize("method", ["full", "h2o", "head-aware", "streaming-llm"])
def test_compiled_models_give_the_same_logits(model, method):
    options = {"calibration": tiny_calibration(2, 3, 6)} if method == "head-aware" else {}
    budget = None if method == "full" else BUDGET
    # As Dynamo sees the graph, run as it is: compilers behind it never see the cache.
    compiled = torch.compile(model, backend="eager")
    expected = logits(model, make_cache(model, method, budget, **options))
    found = logits(compiled, make_cache(compiled, method, budget, **options))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
