"""kvpress at work: contexts and questions in, answers out. Runs in the environment of `make peers`.

kvpress needs another transformers than this package, so it has a Python of its own, which runs this
file as `python -m kvbudget.run.kvpress_worker`. So it imports nothing of this package that needs
more than torch. Standard input is one request as JSON (`Request`); standard output has a line of
JSON of where this is, then one for each context.
"""

import copy
import importlib.metadata
import itertools
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
#: Sequences that are read at once; each has keys and values of its own.
_AT_ONCE = 16
#: Steps of one sequence alone that are timed in each context.
_TIMED = 4


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
        details: whether to tell the positions that are kept, and the logits after each question and
            after each token of its answers.
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
    result = {"allocated_bytes": allocated_bytes(compressed.cache)}
    if details:
        result["kept"] = kept_positions(model, compressed)
    return result | {
        "slots": slots(model, compressed),
        "prefill_s": seconds,
        "decode_s": timed(model, compressed, context["questions"][0]),
        "answers": ask(model, compressed, context["questions"], details),
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


class Rows:
    """Sequences, equally long, that go on from a compressed context, each with a copy of it.

    Args:
        model: reads them.
        compressed: the context, which stays as it is.
        count: sequences.
    """

    def __init__(self, model: PreTrainedModel, compressed: Compressed, count: int):
        self._model, self._compressed, self._tokens = model, compressed, compressed.tokens
        self._cache = _rows_of(compressed.cache, [0] * count)

    def branch(self, rows: list[int]) -> "Rows":
        """Copies of some of them, in that order, a row as often as it is named."""
        other = copy.copy(self)
        other._cache = _rows_of(self._cache, rows)
        return other

    def read(self, rows: list[list[int]]) -> Tensor:
        """Logits after each token of each row, `(rows, tokens, vocab)`.

        transformers makes one mask, for the first layer. It does not fit others that hold fewer
        tokens; then tokens are read one at a time, for which it needs none.
        """
        ids = torch.tensor(rows, device=self._model.device)
        layers = zip(self._model.model.layers, self._compressed.masked, strict=True)
        for layer, places in layers:
            layer.self_attn.masked_key_indices = places and (
                torch.arange(len(rows), device=ids.device).repeat_interleave(len(places[0])),
                *(each.repeat(len(rows)) for each in places),
            )
        alone = len(set(self._compressed.lengths)) > 1
        logits = []
        for piece in ids.split(1 if alone else ids.shape[1], dim=1):
            after = self._tokens + piece.shape[1]
            positions = torch.arange(self._tokens, after, device=ids.device)
            found = self._model(
                input_ids=piece,
                past_key_values=self._cache,
                position_ids=positions.expand_as(piece),
            )
            logits.append(found.logits)
            self._tokens = after
        return torch.cat(logits, dim=1)


def _rows_of(cache: DynamicCache, rows: list[int]) -> DynamicCache:
    copied = DynamicCache()
    for index, layer in enumerate(cache.layers):
        copied.update(layer.keys[rows], layer.values[rows], index)
    return copied


def ask(
    model: PreTrainedModel, compressed: Compressed, questions: list[dict], details: bool
) -> list[dict[str, Any]]:
    """Greedy answers and the likelihoods of given ones. What is equally long is read at once, as
    there is no padding."""
    stops = model.generation_config.eos_token_id
    stops = {stops} if isinstance(stops, int) else set(stops or ())
    found: list[dict[str, Any]] = [{} for _ in questions]
    for group in alike([each["ids"] for each in questions]):
        asked = Rows(model, compressed, len(group))
        first = asked.read([questions[place]["ids"] for place in group])[:, -1]
        given = [
            (row, ids) for row, place in enumerate(group) for ids in questions[place]["answers"]
        ]
        after = after_given(asked, given)
        known: list[dict[tuple[int, ...], int]] = [{(): int(each.argmax())} for each in first]
        likelihoods: list[list[float]] = [[] for _ in group]
        for (row, ids), logits in zip(given, after, strict=True):
            predicted = torch.cat((first[row, None], logits[:-1])).float()
            target = torch.tensor(ids, device=predicted.device)
            loss = torch.nn.functional.cross_entropy(predicted, target, reduction="sum")
            likelihoods[row].append(-loss.item())
            following = logits.argmax(dim=-1).tolist()
            known[row] |= {tuple(ids[: end + 1]): token for end, token in enumerate(following)}
        limits = [questions[place]["max_new_tokens"] for place in group]
        tokens = written(asked, known, limits, stops)
        for row, place in enumerate(group):
            found[place] = {"tokens": tokens[row], "log_likelihoods": likelihoods[row]}
            if details:
                own = [
                    logits for (asker, _), logits in zip(given, after, strict=True) if asker == row
                ]
                found[place]["logits"] = torch.cat((first[row, None], *own)).tolist()
    return found


def after_given(asked: Rows, given: list[tuple[int, list[int]]]) -> list[Tensor]:
    """Logits after each token of given answers, each to the question of a row of `asked`."""
    found: dict[int, Tensor] = {}
    for part in alike([ids for _, ids in given]):
        rows = asked.branch([given[each][0] for each in part])
        found |= zip(part, rows.read([given[each][1] for each in part]), strict=True)
    return [found[each] for each in range(len(given))]


def alike(texts: list[list[int]]) -> Iterator[list[int]]:
    """Places of texts that are equally long, as many as are read at once."""
    by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    for _, same in itertools.groupby(by_length, key=lambda place: len(texts[place])):
        group = list(same)
        yield from (group[start : start + _AT_ONCE] for start in range(0, len(group), _AT_ONCE))


def written(
    asked: Rows, known: list[dict[tuple[int, ...], int]], limits: list[int], stops: set[int]
) -> list[list[int]]:
    """Greedy answers.

    Args:
        asked: has read the questions.
        known: of each row, what the model says next, by the part of an answer that it has read.
        limits: tokens that each answer has at most.
        stops: tokens that end one.
    """
    answers: list[list[int]] = [[] for _ in known]

    def goes_on(row: int, token: int) -> bool:
        """Whether an answer takes one token more, and if so, take it."""
        if len(answers[row]) == limits[row] or token in stops:
            return False
        answers[row].append(token)
        return True

    unknown = []
    for row, following in enumerate(known):
        while (token := following.get(tuple(answers[row]))) is not None:
            if not goes_on(row, token):
                break
        else:
            unknown.append(row)
    texts = [list(answers[row]) for row in unknown]
    for part in alike(texts):
        rows, unread = (
            asked.branch([unknown[each] for each in part]),
            [texts[each] for each in part],
        )
        # A row whose answer is over is read on, and not looked at.
        left = {index: unknown[each] for index, each in enumerate(part)}
        while left:
            tokens = rows.read(unread)[:, -1].argmax(dim=-1).tolist()
            left = {index: row for index, row in left.items() if goes_on(row, tokens[index])}
            unread = [[token] for token in tokens]
    return answers


def timed(model: PreTrainedModel, compressed: Compressed, question: dict) -> list[float]:
    """Seconds of decode steps after a question, of a sequence alone. What is decoded is the
    reference's first tokens."""
    row = Rows(model, compressed, 1)
    row.read([question["ids"]])
    seconds = []
    for token in question["answers"][0][:_TIMED]:
        watch = Stopwatch()
        row.read([[token]])
        seconds.append(watch.seconds())
    return seconds


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
