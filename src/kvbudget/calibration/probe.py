"""Watching attention: a full cache that shows what each head attends to.

A probe reads a context in one forward pass, then later tokens in a second one, whose attention it
keeps. It plugs in like our caches do, so a model is probed as it runs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from kvbudget.cache.attending import AttendingLayer
from kvbudget.cache.attention import attend, attention_blocks
from kvbudget.cache.cache import layers_of, read_aside
from kvbudget.cache.policy import Candidates
from kvbudget.cache.signals import Reading
from kvbudget.cache.slots import Tokens
from kvbudget.policies.rules import SIGNALS


@dataclass
class Gate:
    """A layer between two states of its memory: later tokens get a mix of what each would give.

    Attributes:
        fewer, more: `(kv_heads, context)` bool, tokens of the context that each head sees.
        mix: `(kv_heads,)` float, 0 is the output with `fewer` tokens, 1 with `more`.
    """

    fewer: Tensor
    more: Tensor
    mix: Tensor


class ProbeLayer(AttendingLayer):
    """All keys and values of one layer, and the attention that later tokens paid to them.

    Attributes:
        context: the context's tokens as candidates, with their attention sums.
        probabilities: `(batch, kv_heads, group, later, tokens)` float32, of the later tokens.
    """

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.gate: Gate | None = None
        self.context: Candidates | None = None
        self.probabilities: Tensor | None = None

    def reset(self) -> None:
        """Forget everything."""
        self.gate = self.context = self.probabilities = None

    def get_seq_length(self) -> int:
        return 0 if self.context is None else self.context.tokens.count

    def attend(self, query: Tensor, scaling: float, softcap: float | None, mask: None) -> Tensor:
        """Attention output of new tokens, shaped like `query`."""
        key, value = self.take_pending()
        terms = {"scaling": scaling, "softcap": softcap}
        if self.context is None:
            self.context = self._read(query, key, value, terms)
            return attend(query, key, value, **terms)
        keys = torch.cat((self.context.keys, key), dim=2)
        values = torch.cat((self.context.values, value), dim=2)
        if self.gate is not None:
            fewer, more = (
                attend(query, keys, values, valid=_with_later(kept, key.shape[2]), **terms)
                for kept in (self.gate.fewer, self.gate.more)
            )
            group = query.shape[1] // key.shape[1]
            mix = self.gate.mix.repeat_interleave(group)[:, None, None].to(query.dtype)
            return torch.lerp(fewer, more, mix)
        blocks = attention_blocks(query, keys, **terms)
        rows = [
            torch.nn.functional.pad(block, (0, keys.shape[2] - end)) for _, end, block in blocks
        ]
        self.probabilities = torch.cat(rows, dim=3)
        return attend(query, keys, values, **terms)

    def _read(self, query: Tensor, key: Tensor, value: Tensor, terms: dict) -> Candidates:
        batch, kv_heads, count, _ = key.shape
        positions = torch.arange(count, device=key.device).expand(batch, kv_heads, count)
        signals = [kind() for kind in SIGNALS.values()]
        numbers = {each.name: torch.zeros_like(positions, dtype=torch.float32) for each in signals}
        held = Tokens(tuple(range(kv_heads)), key, value, positions, numbers)
        reading = Reading(query=query, tokens=held, **terms, valid=None, seen=count)
        for signal in signals:
            signal.observe_layer([reading])
        return Candidates(held, self.index, seen=count, budgets=(count,) * kv_heads)


def _with_later(kept: Tensor, later: int) -> Tensor:
    """What heads see of context and later tokens, `(1, kv_heads, tokens)`: later tokens all."""
    return torch.nn.functional.pad(kept, (0, later), value=True)[None]


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
    return cache, read_aside(model, cache, later)  # probes do not store later tokens
