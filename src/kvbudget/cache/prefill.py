"""A prompt that is read once for all methods: recorded on disk, and adopted by any cache.

Where the whole prompt is read before anything is evicted, what a layer passes on depends neither on
what is kept of it nor on how that is stored. So keys as the model gives them (rotated, not yet
moved, turned or quantised), values and the numbers of signals are recorded by a cache that keeps
everything, and a cache of any method, budget and width in bits takes them and goes on as if it had
read the prompt: the same code stores what was read and what is adopted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from kvbudget.cache import files
from kvbudget.cache.cache import BudgetedCache, SlidingLayer, geometry_of, layers_of
from kvbudget.cache.layer import BudgetedLayer, LayerOptions
from kvbudget.cache.plan import Plan
from kvbudget.cache.policy import Policy
from kvbudget.cache.positions import rotations_of
from kvbudget.cache.signals import Signal
from kvbudget.cache.slots import Tokens
from kvbudget.errors import UserError


class _Everything(Policy):
    """Keeps all tokens, and watches what any of several methods would."""

    def __init__(self, signals: Sequence[type[Signal]]) -> None:
        self.kinds = signals

    def signals(self, layer: int) -> list[Signal]:
        return [kind() for kind in self.kinds]


def record(
    model: PreTrainedModel,
    ids: list[int],
    signals: Sequence[type[Signal]],
    path: Path,
    facts: Mapping[str, str],
) -> None:
    """Read a prompt and write what any method may need of it, into a file of its own.

    One file a prompt, as the prompts of a place together may exceed the memory, and a cell that was
    interrupted needs the last ones alone.

    Args:
        model: attached.
        ids: token ids of the prompt.
        signals: all that the methods watch while a prompt is read.
        path: file to write, in one step.
        facts: what the numbers depend on beside the prompt, to be compared when it is adopted.

    Raises:
        UserError: a signal holds more than a number for each token once the prompt is read, or
            needs rotations that are not to be had of this model.
    """
    geometry = geometry_of(model)
    unrotates = any(kind.unrotates for kind in signals)
    options = LayerOptions(
        Plan(_Everything(signals), geometry, budget=None),
        rotations=rotations_of(model, geometry.layers) if unrotates else None,
    )
    layers = layers_of(model, lambda index: BudgetedLayer(index, geometry.kv_heads, options))
    cache = BudgetedCache(layers, options.plan)
    inputs = torch.tensor([ids], device=model.device)
    last = model(inputs, past_key_values=cache, logits_to_keep=1).logits[0, -1]
    tensors = {"ids": inputs[0], "last": last}
    for index, layer in enumerate(cache.layers):
        own = _of_full(layer) if isinstance(layer, BudgetedLayer) else _of_sliding(layer)
        tensors |= {f"{index}.{name}": tensor for name, tensor in own.items()}
    files.write(path, tensors, facts)


def _of_full(layer: BudgetedLayer) -> dict[str, Tensor]:
    for signal in layer.signals:
        if signal.held_bytes():
            raise UserError(
                f"the signal {signal.name!r} holds more than a number for each token once the "
                "prompt is read, which is not recorded; let it drop that, or set prefills: "
                "{share: never}"
            )
    (held,) = layer.store.slots.tokens()
    return {"keys": held.keys, "values": held.values, **held.signals}


def _of_sliding(layer: SlidingLayer) -> dict[str, Tensor]:
    return {"keys": layer.keys, "values": layer.values}


@dataclass(frozen=True)
class Prefill:
    """A recorded prompt.

    Attributes:
        path: the file.
        facts: what it must have been recorded with.
    """

    path: Path
    facts: Mapping[str, str]

    def adopt(self, cache: BudgetedCache, ids: list[int], device: torch.device) -> Tensor:
        """Fill an empty cache as reading the prompt would.

        Args:
            cache: of a model on `device`.
            ids: token ids of the prompt.
            device: where the tensors go.

        Returns:
            The logits of the last token, `(vocab,)`.

        Raises:
            UserError: the file is damaged, or holds another prompt, or what another model, dtype or
                machine made of it; or the cache is not to read the prompt as a whole.
        """
        _check_whole(cache, len(ids))
        with files.opened(self.path, f"the prefill {self.path}", self._remedy) as file:
            self._check(file, ids)
            names = list(file.keys())
            for index, layer in enumerate(cache.layers):
                prefix = f"{index}."
                own = {
                    name.removeprefix(prefix): files.read(file, name, device)
                    for name in names
                    if name.startswith(prefix)
                }
                keys, values = own.pop("keys"), own.pop("values")
                if isinstance(layer, BudgetedLayer):
                    layer.adopt(_tokens(keys, values, own))
                else:
                    layer.adopt(keys, values, len(ids))
            return files.read(file, "last", device)

    def _check(self, file: safe_open, ids: list[int]) -> None:
        found = file.metadata() or {}
        for name, wanted in self.facts.items():
            if found.get(name) != wanted:
                raise UserError(
                    f"the prefill {self.path} was recorded with {name} {found.get(name)}, and this "
                    f"run has {wanted}; {self._remedy}"
                )
        if file.get_tensor("ids").tolist() != ids:
            raise UserError(f"the prefill {self.path} is of another prompt; {self._remedy}")

    @property
    def _remedy(self) -> str:
        return f"delete {self.path.parent}, and it is made again"


def _check_whole(cache: BudgetedCache, tokens: int) -> None:
    (chunk,) = {layer.options.prefill_chunk for layer in cache.budgeted}
    if chunk is not None and chunk < tokens:
        raise UserError(
            f"prefill_chunk: {chunk} evicts while the prompt is read, so a prefill of the whole "
            "cannot be adopted; read it"
        )
    if cache.plan.prompt_tokens not in (None, tokens):
        raise UserError(
            f"the cache expects a prompt of {cache.plan.prompt_tokens} tokens, and the prefill has "
            f"{tokens}; read it"
        )


def _tokens(keys: Tensor, values: Tensor, numbers: dict[str, Tensor]) -> Tokens:
    """The whole of a prompt."""
    _, kv_heads, count, _ = keys.shape
    positions = torch.arange(count, dtype=torch.int32, device=keys.device)
    return Tokens(
        tuple(range(kv_heads)), keys, values, positions.expand(1, kv_heads, count), numbers
    )


def difference(one: BudgetedCache, other: BudgetedCache) -> str | None:
    """Where two caches of one method first differ, in words; None if they are equal bit for bit."""
    for index, (mine, theirs) in enumerate(zip(one.layers, other.layers, strict=True)):
        find = _in_full if isinstance(mine, BudgetedLayer) else _in_sliding
        if (found := find(mine, theirs)) is not None:
            return f"{found} of layer {index}"
    return None


def _in_full(one: BudgetedLayer, other: BudgetedLayer) -> str | None:
    kept = zip(one.kept_positions(), other.kept_positions(), strict=True)
    for head, (mine, theirs) in enumerate(kept):
        if not torch.equal(mine, theirs):
            return f"the tokens kept by KV head {head}"
    if (one.seen, one.store.budgets) != (other.seen, other.store.budgets):
        return "the budgets"
    for mine, theirs in zip(one.store.slots.segments, other.store.slots.segments, strict=True):
        if (mine.heads, mine.capacity) != (theirs.heads, theirs.capacity):
            return "the slots"
        signals = [f"the signal {name!r}" for name in one.store.slots.signals]
        names = ["the keys", "the values", "the order", *signals]
        pairs = zip(mine.stored().tensors(), theirs.stored().tensors(), strict=True)
        for name, pair in zip(names, pairs, strict=True):
            if not torch.equal(*pair):
                return name
    return None


def _in_sliding(one: SlidingLayer, other: SlidingLayer) -> str | None:
    same = torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)
    return None if same and one.cumulative_length == other.cumulative_length else "the window"
