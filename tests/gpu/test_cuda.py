"""The cache on a GPU does what it does on a CPU, where the masked oracle holds it."""

import pytest
import torch
from tiny import ARCHITECTURES, VOCABULARY, calibration_of, tiny_model

from kvbudget import attach, load_cache, make_cache
from kvbudget.cache.cache import read_aside
from kvbudget.policies import registry

METHODS = [name for name, each in registry.METHODS.items() if name != "full" and not each.elsewhere]
BUDGET, PROMPT = 16, 60


def cache_of(model, method: str, **options):
    if registry.method(method).calibrated:
        options["calibration"] = calibration_of(model)
    return make_cache(model, method, BUDGET, **options)


@torch.inference_mode()
def history(model, cache) -> tuple[list, list]:
    """Logits of a prompt, of single tokens and of a block, with a snapshot between; and what each
    head keeps in the end."""
    generator = torch.Generator().manual_seed(0)
    # No token twice: equal keys have equal scores, and rounding would say which of them goes.
    ids = (2 + torch.randperm(VOCABULARY - 2, generator=generator))[None].to(model.device)
    logits = [model(ids[:, :PROMPT], past_key_values=cache).logits]
    if cache.awaits(PROMPT):
        with cache.plan.policy.watching(model), cache.repeating(slice(0, PROMPT)):
            read_aside(model, cache, [5, 6, *ids[0, :PROMPT].tolist()], logits=1)
        cache.compress()
    for i in range(PROMPT, PROMPT + 6):
        logits.append(model(ids[:, i : i + 1], past_key_values=cache).logits)
    state = cache.snapshot()
    logits.append(model(ids[:, PROMPT + 6 : PROMPT + 12], past_key_values=cache).logits)
    cache.restore(state)
    for i in range(PROMPT + 12, PROMPT + 20):
        logits.append(model(ids[:, i : i + 1], past_key_values=cache).logits)
    kept = [head.tolist() for layer in cache.budgeted for head in layer.kept_positions()]
    return [each.float().cpu() for each in logits], kept


def both(kind: str, method: str, dtype=torch.float32, **options) -> tuple:
    found = []
    for where in ("cpu", "cuda"):
        model = attach(tiny_model(kind).to(where, dtype))
        found.append(history(model, cache_of(model, method, **options)))
    return found


def check(found, bits: int | None = None) -> None:
    """Packed, a number that lies between two levels may round to the other one: what follows then
    differs by as much, and once in a while another token is kept."""
    (expected, kept), (logits, on_gpu) = found
    changed = sum(len(set(mine) - set(own)) for mine, own in zip(on_gpu, kept, strict=True))
    assert changed <= (0.03 * sum(map(len, kept)) if bits else 0)
    tolerance = 2e-2 if bits else 2e-4
    for mine, theirs in zip(logits, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_and_says_the_same_as_on_a_cpu(method, bits):
    if bits and method == "streaming-llm":
        check(both("llama", method, bits=bits, positions="absolute"), bits)
    else:
        check(both("llama", method, bits=bits), bits)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("method", ["h2o", "streaming-llm", "head-aware"])
def test_every_architecture(kind, method):
    check(both(kind, method))


@pytest.mark.parametrize("options", [{"bounded": "context"}, {"prefill_chunk": 13}])
@pytest.mark.parametrize("method", ["h2o", "head-aware"])
@pytest.mark.parametrize("bits", [None, 4])
def test_on_top_of_a_context_and_in_chunks(method, options, bits):
    if options.get("bounded"):
        options = options | {"prompt_tokens": PROMPT}
    check(both("llama", method, bits=bits, **options), bits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("method", ["h2o", "streaming-llm", "head-aware", "tova"])
def test_half_precision_generates_and_stays_finite(method, bits, dtype):
    if bits and method == "streaming-llm":
        return
    model = attach(tiny_model("llama").to("cuda", dtype))
    ids = torch.randint(2, VOCABULARY, (2, PROMPT), device="cuda")
    cache = cache_of(model, method, bits=bits)
    out = model.generate(
        ids, past_key_values=cache, max_new_tokens=30, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert out.sequences.shape == (2, PROMPT + 30)
    assert all(each.isfinite().all() for each in out.logits)


@pytest.mark.parametrize("bits", [None, 4])
def test_a_cache_is_saved_and_loaded(tmp_path, bits):
    model = attach(tiny_model("llama").to("cuda"))
    ids = torch.randint(2, VOCABULARY, (1, PROMPT), device="cuda")
    cache = cache_of(model, "head-aware", bits=bits, bounded="context")
    with torch.inference_mode():
        model(ids, past_key_values=cache)
        cache.save(tmp_path / "c.safetensors")
        twin = load_cache(model, tmp_path / "c.safetensors")
        token = torch.tensor([[7]], device="cuda")
        torch.testing.assert_close(
            model(token, past_key_values=twin).logits, model(token, past_key_values=cache).logits
        )
