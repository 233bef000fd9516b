"""A prompt that is read once: a method that adopts it goes on as if it had read it, to the bit."""

import dataclasses

import pytest
import torch
from tiny import VOCABULARY, calibration_of, tiny_calibration, tiny_model

from kvbudget import UserError, attach, make_cache
from kvbudget.cache.cache import BudgetedCache, geometry_of
from kvbudget.cache.prefill import Prefill, difference, record
from kvbudget.cache.signals import Reading, Signal
from kvbudget.options import filled
from kvbudget.policies.fitted import Fitted
from kvbudget.policies.make import make_policy, signal_class
from kvbudget.policies.registry import METHODS
from kvbudget.sources.random import byte_tokenizer

KINDS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text")
FACTS = {"model": "m", "dtype": "float32"}
TOKENIZER = byte_tokenizer()
IDS = torch.randint(3, VOCABULARY, (90,), generator=torch.Generator().manual_seed(1)).tolist()
LATER = (IDS[5:14], *([each] for each in IDS[20:32]))  # a question, then an answer
BUDGET = 24

#: What is made of one prefill: every method, its options that bear on it, and bits.
VARIANTS = {
    "full": {},
    "full-phi": {"method": "full", "phi": 7},
    "h2o": {},
    "h2o-share": {"method": "h2o", "budget": "30%"},
    "h2o-all": {"method": "h2o", "budget": 200},
    "streaming-llm": {},
    "streaming-llm-absolute": {"method": "streaming-llm", "positions": "absolute"},
    "snapkv": {},
    "adakv-snapkv": {"method": "snapkv", "safeguard": 0.2},
    "keydiff": {},
    "adakv-keydiff": {"method": "keydiff", "safeguard": 0.2},
    "tova": {},
    "expected-attention": {},
    "pyramidkv": {},
    "kvzip": {},
    "kvzip-plus": {},
    "head-aware": {},
    "head-aware-window": {"method": "head-aware", "rule": "window"},
    "head-aware-pooled": {"method": "head-aware", "safeguard": 0.5},
}
VARIANTS |= {
    f"{name}-{bits}bit": {"method": name, "bits": bits}
    for name, bits in [
        ("h2o", 8), ("keydiff", 4), ("kvzip", 4), ("kvzip-plus", 4), ("head-aware", 4),
        ("snapkv", 2),
    ]
}  # fmt: skip
VARIANTS["keydiff-4bit-all"] = {"method": "keydiff", "bits": 4, "budget": 60}


@pytest.fixture(scope="module", params=KINDS)
def model(request) -> torch.nn.Module:
    model = attach(tiny_model(request.param))
    model.resize_token_embeddings(len(TOKENIZER), mean_resizing=False)  # for KVzip's requests
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def prefill(model, tmp_path_factory) -> Prefill:
    return recorded(model, tmp_path_factory.mktemp("prefill") / "0.safetensors")


def recorded(model, path, ids=IDS, methods=METHODS, facts=FACTS) -> Prefill:
    names = {
        name
        for key in methods
        for rule in ("diversity", "window")
        for name in METHODS[key].signals({"rule": rule})
    }
    record(model, ids, [signal_class(name) for name in sorted(names)], path, facts)
    return Prefill(path, facts)


def empty(model, name: str) -> BudgetedCache:
    options = dict(VARIANTS[name])
    method = options.pop("method", name)
    budget = options.pop("budget", None if method == "full" else BUDGET)
    if method == "head-aware":
        options["calibration"] = calibration_of(model)
    return make_cache(model, method, budget, prompt_tokens=len(IDS), **options)


def read(model, cache: BudgetedCache, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1).logits[0, -1]


def filled_by(model, cache: BudgetedCache, fill) -> torch.Tensor:
    """The last logits of a context that `fill` puts into a cache, once it is compressed."""
    last = fill()
    cache.finish(model, TOKENIZER, IDS)
    return last


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_adopted_is_what_is_read(model, prefill, name):
    """The same tokens in the same slots, the same bytes, and the same logits ever after."""
    one, other = empty(model, name), empty(model, name)
    first = filled_by(model, one, lambda: read(model, one, IDS))
    second = filled_by(model, other, lambda: prefill.adopt(other, IDS, model.device))
    assert torch.equal(first, second)
    assert difference(one, other) is None
    assert one.allocated_bytes() == other.allocated_bytes()
    for ids in LATER:
        assert torch.equal(read(model, one, ids), read(model, other, ids))
    assert difference(one, other) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["full", "streaming-llm", "h2o", "head-aware-4bit"])
def test_in_half_precision_too(tmp_path, name, dtype):
    model = attach(tiny_model("gemma3_text").to(dtype))
    prefill = recorded(model, tmp_path / "0.safetensors")
    one, other = empty(model, name), empty(model, name)
    assert torch.equal(read(model, one, IDS), prefill.adopt(other, IDS, model.device))
    for ids in LATER:
        assert torch.equal(read(model, one, ids), read(model, other, ids))
    assert difference(one, other) is None


def test_many_caches_adopt_one_prefill(model, prefill):
    """Nothing of what a cache does with it reaches the file."""
    before = prefill.path.read_bytes()
    for _ in range(2):
        cache = empty(model, "streaming-llm")
        prefill.adopt(cache, IDS, model.device)
        for ids in LATER:
            read(model, cache, ids)
    assert prefill.path.read_bytes() == before


def test_a_snapshot_of_what_was_adopted_can_be_restored(model, prefill):
    cache = empty(model, "head-aware-4bit")
    prefill.adopt(cache, IDS, model.device)
    state = cache.snapshot()
    first = [read(model, cache, ids) for ids in LATER]
    cache.restore(state)
    assert all(map(torch.equal, first, [read(model, cache, ids) for ids in LATER]))


@pytest.mark.parametrize("name", [key for key, each in METHODS.items() if not each.elsewhere])
def test_methods_say_by_which_signals_they_watch_a_prompt(name):
    """What planning knows of them without their code."""
    method = METHODS[name]
    options = filled("method", {}, method.options)
    rules = method.options["rule"].schema["enum"] if "rule" in options else [None]
    for rule in rules:
        given = options | ({"rule": rule} if rule else {})
        calibration = Fitted(tiny_calibration(2, 3, 6)) if method.calibrated else None
        policy = make_policy(name, calibration, **given)
        policy.budgets(geometry_of(tiny_model("gemma2")), BUDGET, 90)
        used = {
            type(each)
            for layer in (0, 1)
            for each in policy.signals(layer)
            if not each.in_repetition and not each.of_arrival
        }
        assert used == set(map(signal_class, method.signals(given)))


# What is refused, in words.


@pytest.fixture
def llama() -> torch.nn.Module:
    return attach(tiny_model("llama"))


def test_a_file_that_is_cut_short_or_gone(llama, tmp_path):
    prefill = recorded(llama, tmp_path / "0.safetensors")
    whole = prefill.path.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        prefill.path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut short or damaged .*; delete .*made again"):
            prefill.adopt(empty(llama, "h2o"), IDS, llama.device)
    prefill.path.unlink()
    with pytest.raises(UserError, match="is not there"):
        prefill.adopt(empty(llama, "h2o"), IDS, llama.device)


@pytest.mark.parametrize("name", FACTS)
def test_a_prefill_of_another_model_or_dtype(llama, tmp_path, name):
    prefill = recorded(llama, tmp_path / "0.safetensors")
    other = dataclasses.replace(prefill, facts=FACTS | {name: "another"})
    with pytest.raises(UserError, match=f"recorded with {name} {FACTS[name]}, .* has another"):
        other.adopt(empty(llama, "h2o"), IDS, llama.device)


def test_a_prefill_of_another_prompt(llama, tmp_path):
    prefill = recorded(llama, tmp_path / "0.safetensors")
    for ids in (IDS[:-1], [*IDS[:-1], 3]):
        with pytest.raises(UserError, match="is of another prompt"):
            prefill.adopt(make_cache(llama, "h2o", BUDGET), ids, llama.device)


def test_a_prefill_without_the_signal_of_a_method(llama, tmp_path):
    prefill = recorded(llama, tmp_path / "0.safetensors", methods=["h2o"])
    prefill.adopt(empty(llama, "h2o"), IDS, llama.device)
    with pytest.raises(UserError, match="does not hold the signal 'window'"):
        prefill.adopt(empty(llama, "snapkv"), IDS, llama.device)


def test_a_cache_that_holds_tokens_or_evicts_as_it_reads(llama, tmp_path):
    prefill = recorded(llama, tmp_path / "0.safetensors")
    cache = make_cache(llama, "h2o", BUDGET)
    read(llama, cache, IDS[:30])
    with pytest.raises(UserError, match="expects a prompt of 30 tokens, and the prefill has 90"):
        prefill.adopt(cache, IDS, llama.device)
    cache = empty(llama, "h2o")
    read(llama, cache, IDS)
    with pytest.raises(UserError, match=r"by an empty cache; call reset\(\)"):
        prefill.adopt(cache, IDS, llama.device)
    cache.reset()
    prefill.adopt(cache, IDS, llama.device)
    pieces = make_cache(llama, "h2o", BUDGET, prefill_chunk=16)
    with pytest.raises(UserError, match="prefill_chunk: 16 evicts while"):
        prefill.adopt(pieces, IDS, llama.device)


def test_a_signal_that_holds_more_than_numbers(llama, tmp_path):
    class Hoarder(Signal):
        name = "hoarder"

        def observe(self, reading: Reading, numbers: torch.Tensor) -> torch.Tensor:
            self.hoard = reading.tokens.keys
            return numbers

    with pytest.raises(UserError, match="the signal 'hoarder' holds more than a number"):
        record(llama, IDS, [Hoarder], tmp_path / "0.safetensors", FACTS)
    assert not list(tmp_path.iterdir())


def test_differences_are_named(llama, tmp_path):
    prefill = recorded(llama, tmp_path / "0.safetensors")
    caches = [empty(llama, "h2o") for _ in range(2)]
    for cache in caches:
        prefill.adopt(cache, IDS, llama.device)
    assert difference(*caches) is None
    layer = caches[1].budgeted[2]
    for name, spoil in (
        ("the signal 'attention'", lambda: layer.store.slots.signals["attention"].add_(1)),
        ("the values", lambda: layer.store.slots.values.add_(1)),
        ("the keys", lambda: layer.store.slots.keys.add_(1)),
        ("the tokens kept by KV head 0", lambda: layer.store.slots.positions.add_(1)),
    ):
        spoil()
        assert difference(*caches) == f"{name} of layer 2"
