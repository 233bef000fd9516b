"""A cache in a file: what has been read and compressed once is asked about for days.

The file says how the cache was made and holds what a snapshot does: the filled slots of each layer
as they are, bytes of quantised numbers too, the numbers of signals and what these hold beside,
sliding windows, moved sinks, and what stands on top of a context. So the cache that is filled from
it goes on as the one that was saved would have, to the bit on the same machine.
"""

import copy
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from kvbudget.cache import files
from kvbudget.cache.cache import BudgetedCache, SlidingLayer, text_config
from kvbudget.cache.eviction import Store, StoreSnapshot
from kvbudget.cache.layer import BudgetedLayer, LayerSnapshot
from kvbudget.cache.quantize import Codec, Coding
from kvbudget.cache.samples import samples
from kvbudget.cache.slots import Slots
from kvbudget.cache.tails import SlidingTail, Tail
from kvbudget.errors import UserError

#: What a file holds and how, counted up when files of before cannot be read any more.
FORMAT = 1
_FACTS = "kvbudget cache"
_TAIL = ("tail.keys", "tail.values", "tail.positions")
_NUMBERS = "signal."
_REMEDY = "give a file that cache.save wrote, or read the context again"
#: Keys of a configuration that say nothing of what a model computes; ids of tokens neither.
_BESIDE = ("transformers_version", "architectures", "use_cache", "return_dict")


def digest(model: PreTrainedModel) -> str:
    """Which model this is, quickly: sha256 of its configuration and of the names, types, shapes and
    64 evenly spaced numbers of its parameters.

    Training changes all numbers, and another dtype their bytes. Whole weights would take seconds
    for a billion parameters; that a few single numbers were changed is not seen.
    """
    config = text_config(model).to_diff_dict()
    told = {
        key: value
        for key, value in config.items()
        if key not in _BESIDE and not key.startswith(("_", "output_")) and "token_id" not in key
    }
    found = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, parameter, sample in samples(model):
        found.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        found.update(sample.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


# Writing.


def save(cache: BudgetedCache, path: Path) -> None:
    """Write a cache; `BudgetedCache.save` says more."""
    model = _check(cache, path)
    described = [_described(layer) for layer in cache.layers]
    facts = {
        "format": FORMAT,
        "written_by": {
            name: importlib.metadata.version(name) for name in ("kvbudget", "torch", "transformers")
        },
        "model": digest(model),
        "reader": _spoken(model),
        "arguments": dict(cache.made.arguments),
        "prompt_tokens": cache.plan.prompt_tokens,
        "seen": cache.get_seq_length(),
        "layers": [own for own, _ in described],
    }
    try:
        told = json.dumps(facts, sort_keys=True)
    except TypeError as error:
        raise UserError(
            f"an argument of make_cache cannot be written as JSON ({error}), so the cache cannot "
            "be saved; give the calibration as kvbudget calibrate writes it, and plain options"
        ) from None
    tensors = {
        f"{index}.{name}": tensor
        for index, (_, own) in enumerate(described)
        for name, tensor in own.items()
    }
    files.write(path, tensors, {_FACTS: told})


def _check(cache: BudgetedCache, path: Path) -> PreTrainedModel:
    """See that the cache can be saved; returns its model."""
    model = None if cache.made is None else cache.made.model()
    if model is None:
        raise UserError(
            "the model that the cache was made for is gone, and the file could not say which it "
            "was; save the cache while its model is there"
        )
    if not all(layer.is_initialized for layer in cache.layers):
        raise UserError("there is nothing to save: the cache is empty; read a context first")
    if any(layer.store.waits for layer in cache.budgeted):
        raise UserError(
            "the cache holds a context that is still to be repeated and compressed; save it once "
            "that is done (cache.plan.policy.finish)"
        )
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to save the cache in; make it first")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it to save the cache in")
    return model


def _spoken(model: PreTrainedModel) -> str:
    return f"{type(model).__name__} in {str(model.dtype).removeprefix('torch.')}"


def _described(layer: BudgetedLayer | SlidingLayer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What there is to say of a layer, and its tensors."""
    return _of_full(layer) if isinstance(layer, BudgetedLayer) else _of_sliding(layer)


def _of_full(layer: BudgetedLayer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    store, slots = layer.store, layer.store.slots
    columns = zip(*(segment.stored().tensors() for segment in slots.segments), strict=True)
    tensors = {
        name: torch.cat([part.flatten(1, 2) for part in column], dim=1)
        for name, column in zip(_columns(slots), columns, strict=True)
    }
    if slots.coding is not None:
        tensors["centre"] = slots.coding.centre
    for signal in layer.signals:
        tensors |= {f"held.{signal.name}.{name}": own for name, own in signal.held().items()}
    facts = {
        "seen": layer.seen,
        "segments": [
            [list(segment.heads), segment.capacity, segment.length] for segment in slots.segments
        ],
        "planned": [int(budget) for budget in store.planned],
        "budgets": [int(budget) for budget in store.budgets],
        "stride": store.stride,
        "padded": store.padded,
    }
    if layer.sinks is not None and layer.sinks.first is not None:
        tensors["sinks"], facts["shift"] = layer.sinks.first, layer.sinks.shift
    return facts, tensors | _of_tail(layer.tail)


def _of_sliding(layer: SlidingLayer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tail = {} if layer.on_top is None else _of_tail(layer.on_top.tail)
    facts = {"seen": layer.cumulative_length}
    return facts, {"keys": layer.keys, "values": layer.values} | tail


def _of_tail(tail: Tail) -> dict[str, Tensor]:
    return dict(zip(_TAIL, tail.held(), strict=True)) if tail.length else {}


def _columns(slots: Slots) -> list[str]:
    """Names of a layer's tensors that have a row for each slot."""
    return ["keys", "values", "positions", *(_NUMBERS + name for name in slots.signals)]


# Reading.


@contextmanager
def opened(path: Path, model: PreTrainedModel) -> Iterator[tuple[safe_open, dict[str, Any]]]:
    """A file of `save` and what it says.

    Raises:
        UserError: it is no such file, or is not whole, or of another format or of another model.
    """
    with files.opened(path, f"the saved cache {path}", _REMEDY) as file:
        told = (file.metadata() or {}).get(_FACTS)
        if told is None:
            raise UserError(f"{path} holds tensors, but no saved cache; {_REMEDY}")
        facts = json.loads(told)
        if facts["format"] != FORMAT:
            raise UserError(
                f"{path} was written in format {facts['format']} by kvbudget "
                f"{facts['written_by']['kvbudget']}, and this version reads format {FORMAT}; use "
                "that version, or read the context again"
            )
        if facts["model"] != digest(model):
            raise UserError(
                f"{path} was saved with another model ({facts['reader']}; this is "
                f"{_spoken(model)}); load the model that read the context, in the same dtype"
            )
        yield file, facts


def fill(
    cache: BudgetedCache, file: safe_open, facts: Mapping[str, Any], device: torch.device
) -> None:
    """Fill an empty cache, made with the arguments that the file names."""
    cache.plan.set_prompt(facts["prompt_tokens"])
    cache.plan.budgets()  # by which policies know the prompt
    names = list(file.keys())
    with torch.inference_mode(False):  # what comes later may be read in either mode
        for index, (layer, own) in enumerate(zip(cache.layers, facts["layers"], strict=True)):
            prefix = f"{index}."
            tensors = {
                name.removeprefix(prefix): files.read(file, name, device)
                for name in names
                if name.startswith(prefix)
            }
            restore = _into_full if isinstance(layer, BudgetedLayer) else _into_sliding
            restore(layer, own, tensors)


def _into_full(layer: BudgetedLayer, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    plan, keys = layer.options.plan, tensors["keys"]
    signals = list(layer.policy.signals(layer.index))
    for signal in signals:
        for name, value in vars(signal).items():
            if value is None or isinstance(value, Tensor):
                setattr(signal, name, tensors.get(f"held.{signal.name}.{name}"))
    shape = (keys.shape[0], layer.kv_heads, 1, plan.geometry.head_dim)
    like = keys.new_zeros(shape, dtype=keys.dtype if plan.codec is None else torch.float32)
    named = [signal.name for signal in signals]
    store = Store(layer.index, plan, layer.options.stride, named, like)
    kept = StoreSnapshot(
        slots=_slots(facts, tensors, like, plan.codec),
        lengths=[length for _, _, length in facts["segments"]],
        signals={},
        planned=facts["planned"],
        budgets=facts["budgets"],
        stride=facts["stride"],
        padded=facts["padded"],
    )
    sinks = copy.copy(layer.sinks)
    if "sinks" in tensors:
        sinks.first, sinks.shift = tensors["sinks"], facts["shift"]
    layer.restore(
        LayerSnapshot(
            seen=facts["seen"],
            store=store,
            kept=kept,
            signals=signals,
            sinks=sinks,
            tail=_tail(tensors),
        )
    )


def _slots(
    facts: dict[str, Any], tensors: dict[str, Tensor], like: Tensor, codec: Codec | None
) -> Slots:
    """Slots laid out and filled as they were."""
    coding = codec and Coding(codec, tensors["centre"])
    shapes = [(tuple(heads), capacity) for heads, capacity, _ in facts["segments"]]
    signals = [name.removeprefix(_NUMBERS) for name in tensors if name.startswith(_NUMBERS)]
    slots = Slots(shapes, like, signals, coding)
    slots.set_lengths(length for _, _, length in facts["segments"])
    start = 0
    for segment in slots.segments:
        stop = start + len(segment.heads) * segment.length
        for name, view in zip(_columns(slots), segment.stored().tensors(), strict=True):
            view.copy_(tensors[name][:, start:stop].unflatten(1, view.shape[1:3]))
        start = stop
    return slots


def _into_sliding(layer: SlidingLayer, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    window = tensors["keys"], tensors["values"], facts["seen"]
    layer.adopt(*window)
    if _TAIL[0] in tensors:
        layer.on_top = SlidingTail(*window, layer.sliding_window)
        layer.on_top.tail = _tail(tensors)


def _tail(tensors: dict[str, Tensor]) -> Tail:
    return Tail.of(*(tensors[name] for name in _TAIL)) if _TAIL[0] in tensors else Tail()
