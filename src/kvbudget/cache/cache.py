"""The cache that plugs into transformers, layer by layer."""

import importlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicSlidingWindowLayer,
    get_layer_types_and_kwargs,
)

from kvbudget.cache.budget import Geometry
from kvbudget.cache.layer import BudgetedLayer, LayerSnapshot
from kvbudget.cache.plan import Plan
from kvbudget.cache.slots import Tokens
from kvbudget.cache.tails import SlidingTail
from kvbudget.errors import UserError


class SlidingLayer(DynamicSlidingWindowLayer):
    """The library's sliding-window layer, without the rest of the prompt.

    The library keeps a view of its window, which holds on to all keys and values that it was cut
    from until the next update.

    Attributes:
        on_top: rows that share the window of a context; None before there are any.
    """

    on_top: SlidingTail | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Keys and values to attend to; only the window is kept."""
        if self.on_top is not None:
            return self.on_top.update(key_states, value_states)
        seen = super().update(key_states, value_states, *args, **kwargs)
        self.keys, self.values = self.keys.clone(), self.values.clone()
        return seen

    def expect(self, positions: Tensor) -> None:
        """Say where the tokens of the next forward pass stand, as `BudgetedCache.expect`."""
        if self.on_top is None:
            window = (self.keys, self.values, self.cumulative_length, self.sliding_window)
            self.on_top = SlidingTail(*window)
        self.on_top.tail.expected = positions

    def batch_select_indices(self, indices: Tensor) -> None:
        """Let what stands on top of the context become these of its rows."""
        if self.on_top is not None:
            self.on_top.tail.select(indices)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.on_top = None

    def check_crop(self) -> None:
        """See that tokens can be taken back. Raises `UserError` if the window has left those
        before them behind."""
        if self.cumulative_length >= self.sliding_window and not self.record_past:
            raise UserError(
                "tokens cannot be taken back once a sliding window has moved on; use snapshot() "
                "and restore()"
            )

    def adopt(self, keys: Tensor, values: Tensor, seen: int) -> None:
        """Take the window after `seen` tokens that were read elsewhere, as if read here."""
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.cumulative_length = keys, values, seen

    def window(self) -> Tokens:
        """The tokens that it holds."""
        batch, kv_heads, count, _ = self.keys.shape
        end = self.cumulative_length
        positions = torch.arange(end - count, end, dtype=torch.int32, device=self.keys.device)
        positions = positions.expand(batch, kv_heads, count)
        return Tokens(tuple(range(kv_heads)), self.keys, self.values, positions, {})

    def snapshot(self) -> tuple[Tensor, Tensor, int, SlidingTail | None]:
        """The state to come back to. It shares the tensors, which are replaced, not written to."""
        on_top = self.on_top and self.on_top.snapshot()
        return self.keys, self.values, self.cumulative_length, on_top

    def restore(self, snapshot: tuple[Tensor, Tensor, int, SlidingTail | None]) -> None:
        """Come back to a snapshot of this layer; it can be restored again."""
        self.is_initialized = True
        self.keys, self.values, self.cumulative_length, on_top = snapshot
        self.on_top = on_top and on_top.snapshot()


def read_aside(model: PreTrainedModel, cache: Cache, ids: Sequence[int], logits: int = 0) -> Tensor:
    """Read tokens that leave no trace in sliding-window layers; other layers see to themselves.

    Returns the last `logits` logits (0: all), `(logits, vocab)`.
    """
    layers = [layer for layer in cache.layers if isinstance(layer, SlidingLayer)]
    states = [layer.snapshot() for layer in layers]
    try:
        inputs = torch.tensor([ids], device=model.device)
        return model(inputs, past_key_values=cache, logits_to_keep=logits).logits[0]
    finally:
        for layer, state in zip(layers, states, strict=True):
            layer.restore(state)


@dataclass(frozen=True)
class Snapshot:
    """State of a cache to come back to, a layer at a time."""

    prompt_tokens: int | None
    layers: list[LayerSnapshot | tuple]


@dataclass(frozen=True)
class Made:
    """How a cache was made, so that one like it can be.

    Attributes:
        model: for which model, of which it holds on to nothing.
        arguments: of `make_cache`, beside the model.
    """

    model: weakref.ref[PreTrainedModel]
    arguments: Mapping[str, Any]


class BudgetedCache(Cache):
    """A `transformers.Cache` that keeps a budget of tokens per KV head.

    Made by `make_cache`. Pass it as `past_key_values` to a model that was `attach`ed.

    Attributes:
        plan: budgets of all heads, and the policy.
        made: how it was made; None if not by `make_cache`.
    """

    def __init__(self, layers: list, plan: Plan, made: Made | None = None) -> None:
        super().__init__(layers=layers)
        self.plan, self.made = plan, made

    @property
    def budgeted(self) -> list[BudgetedLayer]:
        """The full-attention layers."""
        return [layer for layer in self.layers if isinstance(layer, BudgetedLayer)]

    def allocated_bytes(self) -> int:
        """Bytes held by the full-attention layers, counted on the storage that really exists."""
        return sum(layer.allocated_bytes() for layer in self.budgeted)

    def sliding_bytes(self) -> int:
        """Bytes held by sliding-window layers, which take no part in the budget."""
        return sum(
            tensor.numel() * tensor.element_size()
            for layer in self.layers
            if isinstance(layer, SlidingLayer) and layer.is_initialized
            for tensor in (layer.keys, layer.values)
        )

    def kept_positions(self, layer: int) -> list[Tensor]:
        """Original positions that each KV head of a model layer keeps, ascending, a tensor each."""
        if not isinstance(self.layers[layer], BudgetedLayer):
            raise UserError(f"layer {layer} is a sliding-window layer: it evicts nothing by budget")
        return self.layers[layer].kept_positions()

    def planned_bytes(self, itemsize: int, tokens: int | None = None) -> int:
        """Bytes of keys and values of one sequence at the budget, or at `tokens` per KV head."""
        return self.plan.geometry.planned_bytes(tokens or self.plan.tokens(), itemsize)

    def save(self, file: str | Path) -> None:
        """Keep what has been read in a file, from which `kvbudget.load_cache` goes on.

        Logits of the last token are no part of a cache, so a question has to follow. The file is
        of safetensors and as large as the cache; it is written in one step.

        Raises:
            UserError: the cache is empty, or holds a context that is still to be compressed; or
                the model is gone, the folder is not there, or an argument of `make_cache` cannot
                be written as JSON.
        """
        # Named, not imported: no measurement depends on how files are laid out.
        importlib.import_module("kvbudget.cache.saved").save(self, Path(file))

    def reset(self) -> None:
        """Forget everything, the prompt's length included."""
        super().reset()
        self.plan.reset()

    def expect(self, positions: Tensor) -> None:
        """Say where the tokens of the next forward pass stand, `(rows, new)`, -1 at padding.

        They follow a compressed context, which all rows share; a token sees the context and those
        of its row before it. Each forward pass has the rows of the last one, of which
        `batch_select_indices` makes others. The model must be told the positions, too.

        Raises:
            UserError: there is no compressed context, or what follows must fit into its budget.
        """
        if not all(layer.on_top for layer in self.budgeted):
            raise UserError(
                "rows share a context that has been read and compressed, of a cache made with "
                "bounded='context'"
            )
        for layer in self.layers:
            if isinstance(layer, SlidingLayer):
                layer.expect(positions)
            else:
                layer.tail.expected = positions

    @property
    def holds_context(self) -> bool:
        """Whether it holds one context, compressed, and nothing on top of it."""
        return all(layer.holds_context for layer in self.budgeted)

    def awaits(self, tokens: int) -> bool:
        """Whether it holds a context of so many tokens, one sequence, until it is compressed."""
        return all(layer.awaits(tokens) for layer in self.budgeted)

    def finish(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]
    ) -> None:
        """What a method has to do once it has read a context as a whole: KVzip and KVzip+ read it
        again and evict, the others have nothing left to do.

        Args:
            model: has read the context.
            tokenizer: the model's.
            ids: the context's tokens.
        """
        self.plan.policy.finish(model, tokenizer, self, list(ids))

    @contextmanager
    def repeating(self, tokens: slice) -> Iterator[None]:
        """While some tokens of the context are repeated: only signals of repetitions grow, and
        what is read is forgotten at the end."""
        before = [layer.seen for layer in self.budgeted]
        for layer in self.budgeted:
            layer.repeated = tokens
        try:
            yield
        finally:
            for layer, seen in zip(self.budgeted, before, strict=True):
                layer.repeated = None
                layer.forget(layer.seen - seen)

    def compress(self) -> None:
        """Evict a context that was held as a whole: all heads of all layers share one total."""
        self.plan.set_prompt(self.get_seq_length())
        planned = [budget for layer in self.plan.budgets() for budget in layer]
        scores = [layer.held_scores() for layer in self.budgeted]
        heads = [own for each in scores for own in each]
        budgets = iter(self.plan.policy.share_out(heads, planned))
        for layer, own in zip(self.budgeted, scores, strict=True):
            layer.store.compress(own, [next(budgets) for _ in own], layer.seen)

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` tokens, as transformers puts it: in all layers or,
        where one cannot, in none.

        Raises:
            UserError: it cannot be.
        """
        if not 0 <= -tokens_to_remove <= self.get_seq_length():
            raise UserError(
                f"crop takes back tokens that were read, as a negative number from "
                f"-{self.get_seq_length()} to 0, not {tokens_to_remove}"
            )
        for layer in self.layers if tokens_to_remove else ():
            layer.check_crop()
        super().crop(tokens_to_remove)

    def activate_past_recording(self) -> None:
        """Get ready for tokens that are taken back, as assisted decoding does.

        Raises:
            UserError: the cache may have evicted others by then, or takes the first pass, guesses
                of the target included, for the source or the context.
        """
        if self.plan.budget is not None:
            raise UserError(
                "assisted decoding takes tokens back, for which this cache may have evicted others "
                "already; use method 'full', or generate without assistance"
            )
        if self.plan.policy.phi is not None:
            raise UserError(
                "assisted decoding guesses tokens of the target with the source, which phi tells "
                "apart; use phi: auto, or generate without assistance"
            )
        if self.plan.bounded == "context":
            raise UserError(
                "assisted decoding takes back tokens on top of the context, which stay; use "
                "bounded: always, or generate without assistance"
            )
        super().activate_past_recording()

    def snapshot(self) -> Snapshot:
        """The state to come back to: ask several questions of one compressed context."""
        return Snapshot(self.plan.prompt_tokens, [layer.snapshot() for layer in self.layers])

    def restore(self, snapshot: Snapshot) -> None:
        """Come back to a snapshot of this cache; it can be restored again."""
        self.plan.set_prompt(snapshot.prompt_tokens)
        for layer, state in zip(self.layers, snapshot.layers, strict=True):
            layer.restore(state)


def layers_of(
    model: PreTrainedModel, full: Callable[[int], CacheLayerMixin]
) -> list[CacheLayerMixin]:
    """Cache layers of a model: `full(index)` for its full-attention layers, counted among
    themselves, and the library's for those with a sliding window."""
    layers, index = [], 0
    for kind, kwargs in _kinds(model):
        if kind == "full_attention":
            layers.append(full(index))
            index += 1
        else:
            layers.append(SlidingLayer(**kwargs))
    return layers


def _kinds(model: PreTrainedModel) -> list[tuple[str, dict]]:
    """The kinds of a model's layers, and what their cache layers take. Raises `UserError` for those
    that keep something else than keys and values of tokens."""
    kinds = list(zip(*get_layer_types_and_kwargs(text_config(model)), strict=True))
    for kind, kwargs in kinds:
        if kind != "full_attention" and kwargs.keys() != {"sliding_window"}:
            raise UserError(
                f"{type(model).__name__} has layers of the kind {kind!r}, for which there is no "
                "budget; use a model of full-attention and sliding-window layers"
            )
    return kinds


def geometry_of(model: PreTrainedModel) -> Geometry:
    """Full-attention layers and heads of a model."""
    config = text_config(model)
    head_dim = getattr(config, "head_dim", None)
    return Geometry(
        layers=tuple(i for i, (kind, _) in enumerate(_kinds(model)) if kind == "full_attention"),
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        query_heads=config.num_attention_heads,
        head_dim=head_dim or config.hidden_size // config.num_attention_heads,
    )


def text_config(model: PreTrainedModel):
    """The configuration of the part of a model that reads text."""
    return model.config.get_text_config(decoder=True)
