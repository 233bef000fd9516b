"""Signals: what the cache watches for a policy while it reads, kept as a number for each token.

A policy brings its signals along, and the cache knows none by name. A signal sees new tokens when
they arrive, before anything is turned or quantised, and then what their queries attend to, heads of
equal length at a time. Its numbers lie in the slots beside keys and values and move with them.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from kvbudget.cache.attention import (
    attend,
    attention_maxima,
    attention_received,
    attention_sums,
)
from kvbudget.cache.positions import Rotation
from kvbudget.cache.quantize import Codec
from kvbudget.cache.slots import Tokens


@dataclass(frozen=True)
class Arrival:
    """New tokens of all heads of a layer, as the model gives them.

    Attributes:
        query: `(batch, query_heads, new, head_dim)`, rotated to its position; None of a prompt
            that is adopted.
        key, value: `(batch, kv_heads, new, head_dim)`, the key rotated, too.
        positions: `(batch, kv_heads, new)` int32, positions in the sequence; -1 for padding. A
            model that is given a padded batch without `position_ids` counts padding, too.
        first: position of the first of them; None where sequences are padded and differ.
        in_prompt: whether they are of the prompt.
        rotation: how the layer turns queries and keys; None if the policy does not ask for it.
        given: what attention is given, after the norm, `(batch, new, hidden)`; None if the policy
            does not ask for it.
    """

    query: Tensor | None
    key: Tensor
    value: Tensor
    positions: Tensor
    first: int | None
    in_prompt: bool
    rotation: Rotation | None
    given: Tensor | None = None

    @property
    def angles(self) -> Tensor:
        """Cosine and sine of what numbers of queries and keys are turned by, `(batch or 1, 1, new,
        2, head_dim)` float32."""
        if self.first is None:
            return self.rotation.angles(self.positions[:, :1, :, None], self.key)
        return _angles(self.rotation, self.first, *self.key.shape[2:], self.key.device)

    @cached_property
    def unrotated_query(self) -> Tensor:
        """The query as if it stood at position 0 of its sequence, in float32."""
        return self._unrotated(self.query)

    @cached_property
    def unrotated_key(self) -> Tensor:
        """The key as if it stood at position 0 of its sequence, in float32."""
        return self._unrotated(self.key)

    def _unrotated(self, x: Tensor) -> Tensor:
        cos, sin = self.angles.unbind(-2)
        return (x.float() * cos).addcmul_(self.rotation.quarter(x.float()), sin, value=-1)


@functools.lru_cache(maxsize=1)
def _angles(
    rotation: Rotation, first: int, new: int, head_dim: int, device: torch.device
) -> Tensor:
    """As in `Arrival`. All layers of a forward pass ask for the same."""
    with torch.inference_mode(False):  # the first to ask must not decide who may use it
        positions = torch.arange(first, first + new, device=device)
        like = torch.empty(0, head_dim, device=device)
        return rotation.angles(positions[None, None, :, None], like)


@dataclass(frozen=True)
class Reading:
    """What new tokens attend to: some KV heads of a layer, after the model has read them.

    Attributes:
        query: of the new tokens, `(batch, query heads of these KV heads, new, head_dim)`.
        tokens: all that is held, the new tokens at the end; keys and values in the turned basis of
            a quantised cache, as queries are.
        scaling, softcap, valid: as in `kvbudget.cache.attention`.
        seen: tokens of the sequence so far.
        in_prompt: whether the new tokens are of the prompt.
        prompt_read: whether the prompt ends with them or before.
        repeated: tokens of the context that are being repeated; None in ordinary reading.
        rotation: as in `Arrival`.
        codec: turns queries, keys and values; None where they are as the model gives them.
        known: what `received` has worked out, by the number of new tokens.
    """

    query: Tensor
    tokens: Tokens
    scaling: float
    softcap: float | None
    valid: Tensor | None
    seen: int
    in_prompt: bool = True
    prompt_read: bool = True
    repeated: slice | None = None
    rotation: Rotation | None = None
    codec: Codec | None = None
    known: dict[int, Tensor] = field(default_factory=dict)

    @property
    def new(self) -> int:
        """Tokens that were read."""
        return self.query.shape[2]

    @cached_property
    def _keys(self) -> Tensor:
        return self.tokens.keys  # which decodes them anew, where they are quantised

    @property
    def keys(self) -> Tensor:
        """Keys in the basis of the model, `(batch, heads, tokens, head_dim)` float32."""
        keys = self._keys.float()
        return keys if self.codec is None else self.codec.turn_back(keys)

    @property
    def values(self) -> Tensor:
        """Values in the basis of the model, `(batch, heads, tokens, head_dim)` float32."""
        values = self.tokens.values.float()
        return values if self.codec is None else self.codec.turn_back(values)

    def attended(self) -> Tensor:
        """The attention output of the new tokens, shaped like `query`."""
        keys, values = (x.to(self.query.dtype) for x in (self._keys, self.tokens.values))
        return attend(self.query, keys, values, **self._terms)

    def received(self, last: int | None = None) -> Tensor:
        """Attention from the `last` new tokens (None: all), summed over them and the query heads of
        a KV head: `(batch, heads, tokens)` float32. Worked out once for all signals."""
        count = self.new if last is None else min(last, self.new)
        if count not in self.known:
            measure = attention_received if self.new == 1 else attention_sums
            query = self.query[:, :, -count:]
            self.known[count] = measure(query, self._keys, **self._terms)
        return self.known[count]

    @property
    def _terms(self) -> dict:
        return {"scaling": self.scaling, "softcap": self.softcap, "valid": self.valid}

    def most_received(self, sinks: int, worth: Tensor | None = None) -> Tensor:
        """The most attention from any new token to each of the `repeated` tokens, shared out among
        them, the first `sinks` and the new ones alone, for each query head of a KV head: `(batch,
        heads, group, repeated)` float32. `worth` as in `attention_maxima`."""
        held, part = self._keys, self.repeated
        first, new = held[:, :, : min(sinks, part.start)], held[:, :, -self.new :]
        keys = torch.cat((first, held[:, :, part], new), dim=2)
        most = attention_maxima(self.query, keys, self.scaling, self.softcap, worth)
        return most[..., first.shape[2] : -self.new]


class Signal:
    """A number for each token of one layer, kept in float32.

    What else a signal holds for itself are tensors or None, attributes that are replaced, never
    written to, so that a shallow copy is a snapshot. They count as bytes of the cache; what is the
    method's, such as weights, belongs to the policy.

    Attributes:
        name: under which candidates have the numbers.
        in_repetition: whether it grows while the context is repeated, instead of by what is read.
        of_arrival: whether its numbers follow from what arrives, and from nothing else: they are
            worked out anew of a prompt that is adopted.
        unrotates: whether it sees keys or queries as they were before their rotation.
    """

    name: str
    in_repetition = False
    of_arrival = False
    unrotates = False

    def arrive(self, arrival: Arrival) -> Tensor | None:
        """Numbers that new tokens come with, `(batch, kv_heads, new)`; None is 0."""
        return None

    def observe(self, reading: Reading, numbers: Tensor) -> Tensor:
        """Numbers of all tokens after a reading, `(batch, heads, tokens)`, from those before, which
        may be written to. Called for heads of equal length at a time."""
        return numbers

    def observe_layer(self, readings: Sequence[Reading]) -> None:
        """Let the numbers of a layer grow by a reading, all its heads at once."""
        for reading in readings:
            numbers = reading.tokens.signals[self.name]
            if (grown := self.observe(reading, numbers)) is not numbers:
                numbers.copy_(grown)

    def held(self) -> dict[str, Tensor]:
        """What it holds beside the numbers, by attribute."""
        return {name: each for name, each in vars(self).items() if isinstance(each, Tensor)}

    def held_bytes(self) -> int:
        """Bytes that it holds beside the numbers."""
        return sum(each.numel() * each.element_size() for each in self.held().values())
