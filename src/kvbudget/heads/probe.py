"""Watching attention: a full cache that shows what each head attends to.

A probe reads a context in one forward pass, then later tokens in a second one, whose attention it
keeps. It plugs in like our caches do, so a model is probed as it runs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, get_layer_types_and_kwargs

from kvbudget.attention import attend, attention_blocks, attention_sums
from kvbudget.cache.budgeted import SlidingLayer
from kvbudget.cache.layer import OBSERVATION
from kvbudget.cache.plan import SINKS
from kvbudget.policies.base import Candidates


@dataclass
class Ablation:
    """Heads that see only the sinks and the `recent` last tokens of the context.

    `heads` is `(batch, layers, kv_heads)` bool: each sequence of the batch ablates its own.
    """

    heads: Tensor
    recent: int


class ProbeLayer(CacheLayerMixin):
    """All keys and values of one layer, and the attention that later tokens paid to them.

    Attributes:
        context: the context's tokens as candidates, with their attention sums.
        probabilities: `(batch, kv_heads, group, later, tokens)` float32, of the later tokens.
    """

    is_sliding = False

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.ablation: Ablation | None = None
        self.context: Candidates | None = None
        self.probabilities: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        self.is_initialized = True
        self._pending = (key_states, value_states)
        return self, self

    def get_seq_length(self) -> int:
        return 0 if self.context is None else self.context.count

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def attend(self, query: Tensor, scaling: float, softcap: float | None, padding: None) -> Tensor:
        """Attention output of new tokens, shaped like `query`."""
        (key, value), self._pending = self._pending, None
        terms = {"scaling": scaling, "softcap": softcap}
        if self.context is None:
            self.context = self._read(query, key, value, terms)
            return attend(query, key, value, **terms)
        batch = key.shape[0]
        keys = torch.cat((self.context.keys.expand(batch, -1, -1, -1), key), dim=2)
        values = torch.cat((self.context.values.expand(batch, -1, -1, -1), value), dim=2)
        if self.ablation is not None:
            terms["valid"] = self._visible(self.ablation, keys.shape[2])
            return attend(query, keys, values, **terms)
        blocks = attention_blocks(query, keys, **terms)
        rows = [
            torch.nn.functional.pad(block, (0, keys.shape[2] - end)) for _, end, block in blocks
        ]
        self.probabilities = torch.cat(rows, dim=3)
        return attend(query, keys, values, **terms)

    def _read(self, query: Tensor, key: Tensor, value: Tensor, terms: dict) -> Candidates:
        batch, kv_heads, count, _ = key.shape
        return Candidates(
            heads=tuple(range(kv_heads)),
            keys=key,
            values=value,
            positions=torch.arange(count, device=key.device).expand(batch, kv_heads, count),
            sums={
                "attention": attention_sums(query, key, **terms),
                "window": attention_sums(query[:, :, -OBSERVATION:], key, **terms),
            },
            layer=self.index,
            seen=count,
            budgets=(count,) * kv_heads,
        )

    def _visible(self, ablation: Ablation, tokens: int) -> Tensor:
        """`(batch, kv_heads, tokens)`: what the heads see of context and later tokens."""
        heads = ablation.heads[:, self.index]
        order = torch.arange(tokens, device=heads.device)
        near = (order < SINKS) | (order >= self.context.count - ablation.recent)
        return ~heads.unsqueeze(-1) | near


class Probe(Cache):
    """A cache of probes: one for each full-attention layer of an attached model."""

    def __init__(self, model: PreTrainedModel) -> None:
        layers, index = [], 0
        config = model.config.get_text_config(decoder=True)
        for kind, kwargs in zip(*get_layer_types_and_kwargs(config), strict=True):
            if kind == "full_attention":
                layers.append(ProbeLayer(index))
                index += 1
            else:
                layers.append(SlidingLayer(**kwargs))
        super().__init__(layers=layers)

    @property
    def probes(self) -> list[ProbeLayer]:
        return [layer for layer in self.layers if isinstance(layer, ProbeLayer)]


def probe(model: PreTrainedModel, context: list[int], later: list[int]) -> tuple[Probe, Tensor]:
    """Read a context, then later tokens: the probe and the later logits `(later, vocab)`."""
    cache = Probe(model)
    device = model.device
    model(torch.tensor([context], device=device), past_key_values=cache, logits_to_keep=1)
    sliding = _sliding_state(cache)
    logits = model(torch.tensor([later], device=device), past_key_values=cache).logits[0]
    _set_sliding_state(cache, sliding)
    return cache, logits


def ablated(
    model: PreTrainedModel, cache: Probe, later: list[int], ablation: Ablation, logits: int
) -> Tensor:
    """The last `logits` logits of the later tokens with some heads ablated.

    Returns `(batch, logits, vocab)`.
    """
    batch = ablation.heads.shape[0]
    sliding = _sliding_state(cache)
    _set_sliding_state(cache, [(k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1), n)
                               for k, v, n in sliding])  # fmt: skip
    for layer in cache.probes:
        layer.ablation = ablation
    ids = torch.tensor([later], device=model.device).expand(batch, -1)
    output = model(ids, past_key_values=cache, logits_to_keep=logits).logits
    for layer in cache.probes:
        layer.ablation = None
    _set_sliding_state(cache, sliding)
    return output


def _sliding_state(cache: Probe) -> list[tuple[Tensor, Tensor, int]]:
    return [
        (layer.keys, layer.values, layer.cumulative_length)
        for layer in cache.layers
        if isinstance(layer, SlidingLayer)
    ]


def _set_sliding_state(cache: Probe, states: list[tuple[Tensor, Tensor, int]]) -> None:
    sliding = [each for each in cache.layers if isinstance(each, SlidingLayer)]
    for layer, (keys, values, length) in zip(sliding, states, strict=True):
        layer.keys, layer.values, layer.cumulative_length = keys, values, length
