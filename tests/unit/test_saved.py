"""A saved cache goes on, to the bit, as the one that was saved; a file that is none is refused."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import VOCABULARY, calibration_of, tiny_calibration, tiny_model

from kvbudget import UserError, attach, load_cache, make_cache
from kvbudget.cache.cache import BudgetedCache
from kvbudget.cache.prefill import difference, record
from kvbudget.cache.saved import FORMAT, digest
from kvbudget.policies.registry import METHODS
from kvbudget.sources.random import byte_tokenizer

TOKENIZER = byte_tokenizer()
IDS = torch.randint(3, VOCABULARY, (1, 90), generator=torch.Generator().manual_seed(1))
QUESTION = IDS[:, 5:14]
BUDGET = 24

#: Every method, and what bears on what a cache holds.
VARIANTS = {
    **{name: {} for name, each in METHODS.items() if not each.elsewhere},
    "full-phi": {"method": "full", "phi": 7},
    "streaming-llm-absolute": {"method": "streaming-llm", "positions": "absolute"},
    "adakv-snapkv": {"method": "snapkv", "safeguard": 0.8},
    "head-aware-window": {"method": "head-aware", "rule": "window"},
    "head-aware-pooled": {"method": "head-aware", "safeguard": 0.5},
    "h2o-stride": {"method": "h2o", "stride": 5},
    "h2o-chunks": {"method": "h2o", "prefill_chunk": 16},
    "expected-attention-chunks": {"method": "expected-attention", "prefill_chunk": 16},
    "head-aware-chunks-4bit": {"method": "head-aware", "prefill_chunk": 16, "bits": 4},
    "keydiff-share": {"method": "keydiff", "budget": "30%"},
    "keydiff-all": {"method": "keydiff", "budget": 200},
    "snapkv-2bit": {"method": "snapkv", "bits": 2},
    "kvzip-4bit": {"method": "kvzip", "bits": 4},
    "head-aware-8bit": {"method": "head-aware", "bits": 8},
    "adakv-keydiff-8-2bit": {
        "method": "keydiff", "safeguard": 0.2, "bits": 8, "value_bits": 2,
    },
}  # fmt: skip


def model_of(kind: str = "llama", dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    model = tiny_model(kind)
    torch.manual_seed(1)
    model.resize_token_embeddings(len(TOKENIZER), mean_resizing=False)  # for KVzip's requests
    return attach(model.requires_grad_(False).to(dtype))


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def model(request) -> torch.nn.Module:
    return model_of(request.param)


@pytest.fixture(scope="module")
def llama() -> torch.nn.Module:
    return model_of()


def empty(model, name: str, **more) -> BudgetedCache:
    options = VARIANTS[name] | more
    method = options.pop("method", name)
    budget = options.pop("budget", None if method == "full" else BUDGET)
    if METHODS[method].calibrated:
        options["calibration"] = calibration_of(model)
    return make_cache(model, method, budget, prompt_tokens=IDS.shape[1], **options)


def compressed(model, name: str, **more) -> BudgetedCache:
    cache = empty(model, name, **more)
    model(IDS, past_key_values=cache)
    cache.finish(model, TOKENIZER, IDS[0].tolist())
    return cache


def reloaded(model, cache: BudgetedCache, tmp_path: Path) -> BudgetedCache:
    cache.save(tmp_path / "context.cache")
    return load_cache(model, tmp_path / "context.cache")


def assert_goes_on(model, one: BudgetedCache, other: BudgetedCache) -> None:
    """The same bytes, the same logits of a question, of each token after it and of a longer text,
    which evicts where the cache is bounded throughout; and in the end the same bytes again."""
    assert difference(one, other) is None
    assert one.allocated_bytes() == other.allocated_bytes()
    for new in (QUESTION, *IDS[:, 20:32].split(1, dim=1), IDS[:, 30:70]):
        logits = [model(new, past_key_values=each).logits for each in (one, other)]
        assert torch.equal(*logits)
    assert difference(one, other) is None
    assert one.get_seq_length() == other.get_seq_length()
    assert one.allocated_bytes() == other.allocated_bytes()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("bounded", ["always", "context"])
def test_it_goes_on_to_the_bit(model, tmp_path, name, bounded):
    cache = compressed(model, name, bounded=bounded)
    assert_goes_on(model, cache, reloaded(model, cache, tmp_path))


@pytest.mark.parametrize("name", ["full", "h2o", "streaming-llm", "kvzip-4bit", "head-aware-8bit"])
@pytest.mark.parametrize("bounded", ["always", "context"])
def test_it_generates_token_for_token_the_same(model, tmp_path, name, bounded):
    cache = compressed(model, name, bounded=bounded)
    other = reloaded(model, cache, tmp_path)
    asked = torch.cat((IDS, QUESTION), dim=1)
    options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None}
    one, two = (model.generate(asked, past_key_values=each, **options) for each in (cache, other))
    assert torch.equal(one, two)
    assert one.shape[1] == asked.shape[1] + 30


@pytest.mark.parametrize("name", ["h2o", "streaming-llm", "head-aware-8bit", "expected-attention"])
@pytest.mark.parametrize("bounded", ["always", "context"])
def test_in_the_middle_of_an_answer(model, tmp_path, name, bounded):
    """With sinks that have moved, tokens on top of the context, and slots that are being filled."""
    cache = compressed(model, name, bounded=bounded)
    for new in (QUESTION, *IDS[:, 40:47].split(1, dim=1)):
        model(new, past_key_values=cache)
    assert_goes_on(model, cache, reloaded(model, cache, tmp_path))


def test_in_the_middle_of_a_prompt(llama, tmp_path):
    """What a signal still holds beside its numbers is kept, too."""
    cache = empty(llama, "expected-attention", prefill_chunk=16)
    llama(IDS[:, :50], past_key_values=cache)
    assert cache.budgeted[0].signals[0].held_bytes()
    other = reloaded(llama, cache, tmp_path)
    assert_goes_on(llama, cache, other)
    assert not other.budgeted[0].signals[0].held_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["full", "streaming-llm", "head-aware-8bit"])
def test_in_half_precision(tmp_path, name, dtype):
    model = model_of("gemma3_text", dtype)
    cache = compressed(model, name)
    assert_goes_on(model, cache, reloaded(model, cache, tmp_path))


def test_rows_on_top_of_a_context(model, tmp_path):
    """Questions of one context together, each told where its tokens stand."""
    cache = compressed(model, "head-aware-8bit", bounded="context")
    seen = IDS.shape[1]
    places = torch.tensor([[-1, seen, seen + 1], [seen, seen + 1, seen + 2]])

    def read(each, ids, positions):
        each.expect(positions)
        inputs = {"position_ids": positions.clamp(min=0), "past_key_values": each}
        return model(ids, **inputs).logits

    read(cache, IDS[:, :6].view(2, 3), places)
    other = reloaded(model, cache, tmp_path)
    for step in range(3):
        ids, positions = IDS[:, 6 + step : 8 + step].view(2, 1), places[:, -1:] + 1 + step
        assert torch.equal(*(read(each, ids, positions) for each in (cache, other)))


@pytest.mark.parametrize("budget", [BUDGET, 200])
def test_a_padded_batch(llama, tmp_path, budget):
    ids = torch.cat((IDS, IDS.flip(1)))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    cache = make_cache(llama, "h2o", budget)
    llama(ids, past_key_values=cache, attention_mask=mask)
    other = reloaded(llama, cache, tmp_path)
    for token in ids[:, :5].split(1, dim=1):
        mask = torch.cat((mask, torch.ones_like(token)), dim=1)
        inputs = {} if mask.shape[1] == 91 else {"attention_mask": mask}  # the cache knows, too
        pair = (llama(token, past_key_values=each, **inputs).logits for each in (cache, other))
        assert torch.equal(*pair)


def test_saving_changes_nothing_and_is_repeatable(llama, tmp_path):
    cache, twin = (compressed(llama, "head-aware-chunks-4bit") for _ in range(2))
    cache.save(tmp_path / "one")
    cache.save(str(tmp_path / "two"))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    again = load_cache(llama, tmp_path / "one")
    again.save(tmp_path / "three")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "three").read_bytes()
    assert_goes_on(llama, cache, twin)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three", "two"]


def test_a_loaded_cache_can_be_asked_twice_and_reset(llama, tmp_path):
    cache = reloaded(llama, compressed(llama, "streaming-llm"), tmp_path)
    before = (tmp_path / "context.cache").read_bytes()
    state = cache.snapshot()
    first = llama(QUESTION, past_key_values=cache).logits
    cache.restore(state)
    assert torch.equal(first, llama(QUESTION, past_key_values=cache).logits)
    assert (tmp_path / "context.cache").read_bytes() == before
    cache.reset()
    fresh = empty(llama, "streaming-llm")
    assert torch.equal(*(llama(IDS, past_key_values=each).logits for each in (cache, fresh)))


def test_what_was_loaded_in_inference_mode_can_be_read_outside_of_it(llama, tmp_path):
    compressed(llama, "h2o").save(tmp_path / "c")
    with torch.inference_mode():
        cache = load_cache(llama, tmp_path / "c")
    for token in QUESTION.split(1, dim=1):
        llama(token, past_key_values=cache)


def test_the_file_is_about_as_large_as_the_cache(llama, tmp_path):
    cache = compressed(llama, "h2o", bits=4)
    cache.save(tmp_path / "c")
    with safe_open(tmp_path / "c", "pt") as file:
        numbers = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert numbers <= cache.allocated_bytes()


def test_a_deep_copy_can_be_saved(llama, tmp_path):
    cache = compressed(llama, "h2o")
    assert_goes_on(llama, cache, reloaded(llama, copy.deepcopy(cache), tmp_path))


def test_another_process_goes_on(tmp_path):
    """Nothing that the file needs was in the memory of who wrote it."""
    code = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_saved import QUESTION, model_of, compressed
from kvbudget import load_cache
model = model_of("gemma3_text")
cache = load_cache(model, sys.argv[1])
torch.save(model(QUESTION, past_key_values=cache).logits, sys.argv[1] + ".logits")
"""
    model = model_of("gemma3_text")
    cache = compressed(model, "head-aware-8bit")
    cache.save(tmp_path / "c")
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", code, str(tmp_path / "c"), here]
    subprocess.run(command, check=True, env=os.environ)
    wanted = model(QUESTION, past_key_values=cache).logits
    assert torch.equal(torch.load(tmp_path / "c.logits"), wanted)


# Which model it is.


def test_a_model_is_known_by_its_weights_and_its_configuration():
    model = model_of()
    first = digest(model)
    assert digest(model_of()) == first
    model.config.pad_token_id, model.config.use_cache = 5, False
    model.config._name_or_path = "elsewhere"
    assert digest(model) == first
    assert digest(model_of("qwen2")) != first
    assert digest(model_of(dtype=torch.bfloat16)) != first
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 5000.0}
    assert digest(model) != first
    for name, parameter in model_of().named_parameters():
        trained = model_of()
        with torch.no_grad():
            trained.get_parameter(name).mul_(1.001)
        assert digest(trained) != first, (name, parameter.shape)


# What is refused, in words.


@pytest.mark.parametrize("other", ["seed", "dtype", "architecture"])
def test_a_cache_of_another_model(llama, tmp_path, other):
    compressed(llama, "h2o").save(tmp_path / "c")
    models = {
        "seed": lambda: attach(tiny_model(seed=3)),
        "dtype": lambda: model_of(dtype=torch.bfloat16),
        "architecture": lambda: model_of("qwen2"),
    }
    message = r"saved with another model \(LlamaForCausalLM in float32; this is .*; load the model"
    with pytest.raises(UserError, match=message):
        load_cache(models[other](), tmp_path / "c")


def test_a_file_that_is_cut_short_or_gone_or_another(llama, tmp_path):
    path = tmp_path / "c"
    compressed(llama, "h2o").save(path)
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"c is cut short or damaged .*; give a file"):
            load_cache(llama, path)
    path.write_text("a text, " * 20)
    with pytest.raises(UserError, match="cut short or damaged"):
        load_cache(llama, path)
    path.unlink()
    with pytest.raises(UserError, match="is not there; give a file"):
        load_cache(llama, path)
    with pytest.raises(UserError, match="cannot be read"):
        load_cache(llama, tmp_path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="holds tensors, but no saved cache"):
        load_cache(llama, path)
    record(llama, IDS[0].tolist(), [], path, {"model": "m"})
    with pytest.raises(UserError, match="holds tensors, but no saved cache"):
        load_cache(llama, path)


def test_a_file_of_a_newer_format(llama, tmp_path):
    path = tmp_path / "c"
    compressed(llama, "h2o").save(path)
    with safe_open(path, "pt") as file:
        ((name, told),) = file.metadata().items()
    facts = json.loads(told) | {"format": FORMAT + 1}
    facts["written_by"]["kvbudget"] = "9.1"
    save_file(load_file(path), path, {name: json.dumps(facts)})
    message = f"in format {FORMAT + 1} by kvbudget 9.1, and this version reads format {FORMAT}; use"
    with pytest.raises(UserError, match=message):
        load_cache(llama, path)


def test_a_model_that_is_not_attached(llama, tmp_path):
    compressed(llama, "h2o").save(tmp_path / "c")
    model = model_of()
    model.set_attn_implementation("sdpa")
    with pytest.raises(UserError, match=r"call attach\(model\) first"):
        load_cache(model, tmp_path / "c")


def test_what_cannot_be_saved(llama, tmp_path):
    with pytest.raises(UserError, match="the cache is empty; read a context first"):
        empty(llama, "h2o").save(tmp_path / "c")
    waiting = empty(llama, "kvzip")
    llama(IDS, past_key_values=waiting)
    with pytest.raises(UserError, match="still to be repeated and compressed"):
        waiting.save(tmp_path / "c")
    with pytest.raises(UserError, match=r"there is no folder .*nowhere to save"):
        compressed(llama, "h2o").save(tmp_path / "nowhere" / "c")
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        compressed(llama, "h2o").save(tmp_path)
    model = model_of()
    orphan = compressed(model, "h2o")
    del model
    with pytest.raises(UserError, match="is gone"):
        orphan.save(tmp_path / "c")
    odd = tiny_calibration(4, 3, 6) | {"note": {1, 2}}
    cache = make_cache(llama, "head-aware", BUDGET, calibration=odd)
    llama(IDS, past_key_values=cache)
    with pytest.raises(UserError, match=r"cannot be written as JSON .*set"):
        cache.save(tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_the_last_one(llama, tmp_path, monkeypatch):
    path = tmp_path / "c"
    cache = compressed(llama, "h2o")
    cache.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("kvbudget.cache.files.save_file", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cache.save(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["c"]
