"""kvpress at work: contexts and questions in, answers out. Runs in the environment of `make peers`.

kvpress needs another transformers than this package, so it has a Python of its own, which runs this
file as `python -m kvbudget.run.kvpress_worker`. So it imports nothing of this package that needs
more than torch. Standard input is one request as JSON (`Request`); standard output has a line of
JSON of where this is, then one for each context.
"""

import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from kvbudget.run import memory
from kvbudget.run.job import WARM_UP
from kvbudget.run.machine import machine
from kvbudget.run.stopwatch import Stopwatch

#: Whose versions a result depends on.
LIBRARIES = ("kvpress", "torch", "transformers", "numpy", "safetensors", "tokenizers")
#: A share of tokens by which a ratio is moved, so that a press that rounds keeps what is meant.
_NUDGE = 1e-9


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        model_dir: safetensors and a tokenizer; nothing is fetched.
        dtype, device: as torch names them.
        threads: to compute with.
        press: `press`, a class of kvpress, its `arguments`, and `safeguard`: 1, or the share of its
            budget that each head keeps under AdaKV over it.
        contexts: `ids`, the `budget` in tokens of a KV head, and `questions`, each with `ids`,
            `answers` (ids of the answers that are given) and `max_new_tokens`.
        details: whether to tell the positions that are kept and the logits after each question.
    """

    model_dir: str
    dtype: str
    device: str
    threads: int
    press: dict[str, Any]
    contexts: list[dict[str, Any]]
    details: bool = False


@dataclass
class Compressed:
    """A context that a press has compressed.

    Attributes:
        cache: what is held of it.
        tokens: of the context; questions go on from there.
        lengths: tokens that each layer holds.
        masked: of each layer, KV heads and places of what is held but never seen, or None.
        given: keys that each layer was given, where they were asked for.
    """

    cache: DynamicCache
    tokens: int
    lengths: list[int]
    masked: list[tuple[Tensor, Tensor] | None]
    given: dict[int, Tensor] = field(default_factory=dict)


def main() -> None:
    """Answer the request on standard input."""
    request = Request(**json.load(sys.stdin))
    torch.set_num_threads(request.threads)
    for line in work(request):
        print(json.dumps(line), flush=True)


def work(request: Request) -> Iterator[dict[str, Any]]:
    """Where this is, then the result of each context."""
    import kvpress  # patches transformers' attention, so before a model is loaded

    watch = Stopwatch()
    needs_weights = issubclass(
        getattr(kvpress, request.press["press"]), kvpress.ObservedAttentionPress
    )
    model = AutoModelForCausalLM.from_pretrained(
        request.model_dir,
        dtype=getattr(torch, request.dtype),
        attn_implementation="eager" if needs_weights else "sdpa",
        local_files_only=True,
        use_safetensors=True,
    )
    model.eval().requires_grad_(False).to(request.device)
    yield {
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
        "machine": machine(model.device),
        "load_s": watch.seconds(),
    }
    for context in request.contexts[:1]:
        with torch.no_grad():
            model.model(input_ids=torch.tensor([context["ids"][:WARM_UP]], device=model.device))
    for context in request.contexts:
        press = make_press(kvpress, request.press, len(context["ids"]), context["budget"])
        with torch.no_grad():
            yield _result(model, press, context, request.details)


def make_press(kvpress: Any, wanted: dict[str, Any], tokens: int, budget: int) -> Any:
    """A press that keeps `budget` of `tokens` tokens in the mean over the KV heads."""
    press = getattr(kvpress, wanted["press"])(**wanted["arguments"])
    # Most round what they keep down, KVzip and its kin what they evict.
    nudge = _NUDGE if isinstance(press, kvpress.KVzipPress) else -_NUDGE
    if budget < tokens:
        press.compression_ratio = (tokens - budget) / tokens + nudge
    if wanted["safeguard"] == 1:
        return press
    return kvpress.AdaKVPress(press, alpha_safeguard=wanted["safeguard"])


def _result(model: PreTrainedModel, press: Any, context: dict, details: bool) -> dict[str, Any]:
    memory.mark_peak()
    watch = Stopwatch()
    compressed = read(model, press, context["ids"], keys=details)
    seconds = watch.seconds()
    peaks = {
        "peak_rss_bytes": memory.peak_rss_bytes(),
        "peak_cuda_bytes": memory.peak_cuda_bytes(),
    }
    # Before anything is asked: that adds tokens, and masked keys are overwritten then.
    result = {"allocated_bytes": allocated_bytes(compressed.cache)}
    if details:
        result["kept"] = kept_positions(model, compressed)
    asked = [ask(model, compressed, question, details) for question in context["questions"]]
    return result | {
        "slots": slots(model, compressed),
        "prefill_s": seconds,
        "decode_s": [step for each in asked for step in each.pop("decode_s")],
        "answers": asked,
        **peaks,
    }


def read(model: PreTrainedModel, press: Any, ids: list[int], *, keys: bool = False) -> Compressed:
    """Read a context and let the press compress it, as kvpress's own pipeline does."""
    cache, given = DynamicCache(), {}
    if keys and hasattr(press, "compress"):
        compress = press.compress

        def seen(module, hidden_states, keys, *others):
            given[module.layer_idx] = keys
            return compress(module, hidden_states, keys, *others)

        press.compress = seen
    with press(model):
        model.model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache)
    masked = []
    for layer in model.model.layers:
        places = getattr(layer.self_attn, "masked_key_indices", None)
        masked.append(None if places is None else places[1:])
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    return Compressed(cache, len(ids), lengths, masked, given)


def ask(model: PreTrainedModel, compressed: Compressed, question: dict, details: bool) -> dict:
    """A greedy answer and the likelihoods of given ones; the cache is as before afterwards."""
    ids, start = question["ids"], compressed.tokens
    first = forward(model, compressed, ids, start)[-1]
    after = start + len(ids)
    asked = [layer.keys.shape[2] for layer in compressed.cache.layers]
    likelihoods, logits = [], [first]
    for given in question["answers"]:
        follow = forward(model, compressed, given, after)
        predicted = torch.cat((first[None], follow[:-1])).float()
        target = torch.tensor(given, device=predicted.device)
        likelihoods.append(
            -torch.nn.functional.cross_entropy(predicted, target, reduction="sum").item()
        )
        logits += follow
        crop(compressed.cache, asked)
    tokens: list[int] = []
    seconds, last = [], first
    stops = model.generation_config.eos_token_id
    stops = {stops} if isinstance(stops, int) else set(stops or ())
    while len(tokens) < question["max_new_tokens"] and (token := int(last.argmax())) not in stops:
        tokens.append(token)
        watch = Stopwatch()
        last = forward(model, compressed, [token], after + len(tokens) - 1)[-1]
        seconds.append(watch.seconds())
    crop(compressed.cache, compressed.lengths)
    found = {"tokens": tokens, "log_likelihoods": likelihoods, "decode_s": seconds}
    return found | {"logits": torch.stack(logits).tolist()} if details else found


def forward(model: PreTrainedModel, compressed: Compressed, ids: list[int], start: int) -> Tensor:
    """Logits after each of some tokens, the first at position `start`.

    transformers makes one mask, for the first layer. It does not fit others that hold fewer tokens;
    then tokens are read one at a time, for which it needs none.
    """
    step = len(ids) if len(set(compressed.lengths)) == 1 else 1
    logits = []
    for place in range(0, len(ids), step):
        piece = torch.tensor([ids[place : place + step]], device=model.device)
        positions = torch.arange(start + place, start + place + step, device=model.device)
        logits.append(
            model(
                input_ids=piece, past_key_values=compressed.cache, position_ids=positions[None]
            ).logits[0]
        )
    return torch.cat(logits)


def crop(cache: DynamicCache, lengths: list[int]) -> None:
    """Take back what each layer has beyond a length."""
    for layer, length in zip(cache.layers, lengths, strict=True):
        layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]


def slots(model: PreTrainedModel, compressed: Compressed) -> list[list[int]]:
    """Tokens that each KV head of each layer can still see."""
    heads = model.config.num_key_value_heads
    counts = []
    for length, places in zip(compressed.lengths, compressed.masked, strict=True):
        lost = torch.zeros(heads, dtype=torch.long)
        if places is not None:
            lost = torch.bincount(places[0].cpu(), minlength=heads)
        counts.append((length - lost).tolist())
    return counts


def allocated_bytes(cache: DynamicCache) -> int:
    """Bytes of the storage of keys and values, whatever of it can be seen."""
    tensors = [each for layer in cache.layers for each in (layer.keys, layer.values)]
    return sum(each.untyped_storage().nbytes() for each in tensors)


def kept_positions(model: PreTrainedModel, compressed: Compressed) -> list[list[list[int]]]:
    """Positions that each KV head of each layer can still see, ascending."""
    kept = []
    for index, layer in enumerate(compressed.cache.layers):
        keys, places = layer.keys[0], compressed.masked[index]
        if index in compressed.given:
            found = [_found(*own) for own in zip(keys, compressed.given[index][0], strict=True)]
        else:
            found = [list(range(keys.shape[1])) for _ in keys]
        if places is not None:
            lost = set(zip(*(each.tolist() for each in places), strict=True))
            found = [
                [place for place in own if (head, place) not in lost]
                for head, own in enumerate(found)
            ]
        kept.append(found)
    return kept


def _found(keys: Tensor, given: Tensor) -> list[int]:
    """Where keys stood among those that were given, `(tokens, head_dim)` each."""
    places = {row.numpy().tobytes(): place for place, row in enumerate(given.float().cpu())}
    return sorted(places[row.numpy().tobytes()] for row in keys.float().cpu())


if __name__ == "__main__":
    main()
