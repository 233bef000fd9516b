"""A cache takes the bytes of its budget and little more, whatever the method and the width."""

import pytest
import torch
from tiny import tiny_calibration
from transformers import AutoConfig, AutoModelForCausalLM

from kvbudget import attach, make_cache
from kvbudget.policies import registry
from kvbudget.run.bench.fill import fill
from kvbudget.run.bench.size import sizes

HEAD_DIM, LAYERS, KV_HEADS, GROUP = 64, 2, 3, 3
BUDGETS = (512, 1024)
#: KVzap sees hidden states, so it cannot be filled with keys and values alone.
METHODS = [
    name
    for name, each in registry.METHODS.items()
    if name not in ("full", "kvzap") and not each.elsewhere
]


@pytest.fixture(scope="module")
def model():
    config = AutoConfig.for_model(
        "llama",
        vocab_size=97,
        hidden_size=KV_HEADS * GROUP * HEAD_DIM,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=KV_HEADS * GROUP,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
    )
    torch.manual_seed(0)
    return attach(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False))


def over_plan(model, method: str, dtype: torch.dtype, **options) -> list[float]:
    """Bytes held over bytes planned at each of the budgets."""
    model.to(dtype)
    if registry.METHODS[method].calibrated:
        options["calibration"] = tiny_calibration(
            LAYERS, KV_HEADS, KV_HEADS * GROUP, head_dim=HEAD_DIM
        )
    if options.get("bits") and method == "streaming-llm":
        options["positions"] = "absolute"
    found = []
    for budget in BUDGETS:
        cache = make_cache(model, method, budget, **options)
        fill(model, [(cache, 16 * budget)])  # more than 2 bits could hold in any layer
        found.append(sizes(cache, dtype.itemsize)["over_plan"])
    return found


@pytest.mark.parametrize("bits", [None, 8, 4, 2])
@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_a_compressed_context_takes_the_bytes_of_its_budget(model, method, bits):
    ratios = over_plan(model, method, torch.bfloat16, bits=bits, bounded="context")
    assert all(0.98 <= ratio <= 1.02 for ratio in ratios)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_so_does_a_packed_cache_that_goes_on_evicting(model, method, bits):
    """Numbers that tokens are scored by stay, and count."""
    ratios = over_plan(model, method, torch.bfloat16, bits=bits, bounded="always")
    assert all(0.98 <= ratio <= 1.02 for ratio in ratios)


@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_unpacked_it_holds_a_number_a_token_above_its_budget(model, method):
    """A budget in tokens is what it says: a position and a number, 4 bytes each, come on top of two
    vectors of 64 numbers."""
    for dtype, most in ((torch.float32, 1.02), (torch.bfloat16, 1.04)):
        assert all(1 <= ratio <= most for ratio in over_plan(model, method, dtype))
