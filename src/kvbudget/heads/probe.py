"""Watching attention: a full cache that shows what each head attends to.

A probe reads a context in one forward pass, then later tokens in a second one, whose attention it
keeps. It plugs in like our caches do, so a model is probed as it runs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from kvbudget.attention import attend, attention_blocks, attention_sums
from kvbudget.cache.attending import AttendingLayer
from kvbudget.cache.budgeted import SlidingLayer, layers_of
from kvbudget.cache.plan import SINKS
from kvbudget.policies.base import OBSERVATION, Candidates


@dataclass
class Ablation:
    """Heads that see only the sinks and the `recent` last tokens of the context.

    `heads` is `(batch, layers, kv_heads)` bool: each sequence of the batch ablates its own.
    """

    heads: Tensor
    recent: int


class ProbeLayer(AttendingLayer):
    """All keys and values of one layer, and the attention that later tokens paid to them.

    Attributes:
        context: the context's tokens as candidates, with their attention sums.
        probabilities: `(batch, kv_heads, group, later, tokens)` float32, of the later tokens.
    """

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.ablation: Ablation | None = None
        self.context: Candidates | None = None
        self.probabilities: Tensor | None = None

    def get_seq_length(self) -> int:
        return 0 if self.context is None else self.context.count

    def attend(self, query: Tensor, scaling: float, softcap: float | None, padding: None) -> Tensor:
        """Attention output of new tokens, shaped like `query`."""
        key, value = self.take_pending()
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
        super().__init__(layers=layers_of(model, ProbeLayer))

    @property
    def probes(self) -> list[ProbeLayer]:
        return [layer for layer in self.layers if isinstance(layer, ProbeLayer)]


def probe(model: PreTrainedModel, context: list[int], later: list[int]) -> tuple[Probe, Tensor]:
    """Read a context, then later tokens: the probe and the later logits `(later, vocab)`."""
    cache = Probe(model)
    ids = torch.tensor([context], device=model.device)
    model(ids, past_key_values=cache, logits_to_keep=1)
    return cache, _read_later(model, cache, later)[0]


def ablated(
    model: PreTrainedModel, cache: Probe, later: list[int], ablation: Ablation, logits: int
) -> Tensor:
    """The last `logits` logits of the later tokens with some heads ablated.

    Returns `(batch, logits, vocab)`.
    """
    for layer in cache.probes:
        layer.ablation = ablation
    output = _read_later(model, cache, later, batch=len(ablation.heads), logits=logits)
    for layer in cache.probes:
        layer.ablation = None
    return output


def _read_later(
    model: PreTrainedModel, cache: Probe, later: list[int], batch: int = 1, logits: int = 0
) -> Tensor:
    """The last `logits` logits (0: all) of later tokens, `batch` times at once.

    Probes do not store later tokens, so sliding layers forget them too.
    """
    sliding = [layer for layer in cache.layers if isinstance(layer, SlidingLayer)]
    states = [layer.snapshot() for layer in sliding]
    for layer, (keys, values, length) in zip(sliding, states, strict=True):
        layer.restore((*(each.expand(batch, -1, -1, -1) for each in (keys, values)), length))
    ids = torch.tensor([later], device=model.device).expand(batch, -1)
    output = model(ids, past_key_values=cache, logits_to_keep=logits).logits
    for layer, state in zip(sliding, states, strict=True):
        layer.restore(state)
    return output
