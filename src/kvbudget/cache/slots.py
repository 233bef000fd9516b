"""Ragged key-value storage of one layer: every KV head owns a fixed number of slots."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from kvbudget.cache.quantize import Coding


@dataclass
class Tokens:
    """Tokens of some KV heads of one layer.

    Attributes:
        heads: KV head indices.
        keys, values: `(batch, heads, tokens, head_dim)`.
        positions: `(batch, heads, tokens)` int32, positions in the sequence; -1 for padding.
        signals: signal → `(batch, heads, tokens)` float32, its numbers (`kvbudget.cache.signals`).
    """

    heads: tuple[int, ...]
    keys: Tensor
    values: Tensor
    positions: Tensor
    signals: dict[str, Tensor]

    @property
    def count(self) -> int:
        """Tokens a head."""
        return self.positions.shape[2]

    @classmethod
    def of(cls, heads: tuple[int, ...], tensors: list[Tensor], signals: Iterable[str]) -> "Tokens":
        """Tokens of what `tensors()` lists, the numbers of signals under their names."""
        keys, values, positions, *numbers = tensors
        return cls(heads, keys, values, positions, dict(zip(signals, numbers, strict=True)))

    def tensors(self) -> list[Tensor]:
        return [self.keys, self.values, self.positions, *self.signals.values()]

    def bare(self) -> "Tokens":
        """The tokens without the numbers of signals."""
        return Tokens(self.heads, self.keys, self.values, self.positions, {})

    def stored(self, place: int, kept: Tensor | None, coding: Coding | None) -> list[Tensor]:
        """Tensors of the tokens `kept`, `(batch, n)` indices or None for all, of the head at a
        place among `heads`, as slots of a coding hold them: `(batch, n, …)`."""
        keys, values, *beside = (select(each[:, place], kept) for each in self.tensors())
        if coding is not None:
            rows = coding.encode(keys[:, None], values[:, None], [self.heads[place]])
            keys, values = (each[:, 0] for each in rows)
        return [keys, values, *beside]

    def part(self, start: int, stop: int) -> "Tokens":
        """Tokens `start` to `stop` of every head, as views."""
        piece = slice(start, stop)
        return Tokens.of(self.heads, [each[:, :, piece] for each in self.tensors()], self.signals)


class CodedTokens(Tokens):
    """Tokens of a quantised segment: keys and values are decoded whenever they are asked for, and
    not kept, or those of all segments would be there at once.

    In float32 whatever a model computes in.

    Args:
        rows: keys and values as rows of bytes.
        coding: how they are stored.
    """

    def __init__(self, rows: Tokens, coding: Coding) -> None:
        self.heads, self.positions, self.signals = rows.heads, rows.positions, rows.signals
        self._rows, self._coding = rows, coding

    @property
    def keys(self) -> Tensor:
        return self._coding.decode_keys(self._rows.keys, list(self.heads))

    @property
    def values(self) -> Tensor:
        return self._coding.decode_values(self._rows.values)

    def bare(self) -> "CodedTokens":
        return CodedTokens(self._rows.bare(), self._coding)

    def stored(self, place: int, kept: Tensor | None, coding: Coding | None) -> list[Tensor]:
        return self._rows.stored(place, kept, None)  # as they are: nothing is encoded twice


class JoinedTokens(Tokens):
    """Held tokens and new ones after them. Keys and values are joined whenever they are asked for,
    and not kept, as in `CodedTokens`.

    Args:
        held, new: of the same heads.
        positions, signals: of all.
    """

    def __init__(
        self, held: Tokens, new: Tokens, positions: Tensor, signals: dict[str, Tensor]
    ) -> None:
        self.heads, self.positions, self.signals = held.heads, positions, signals
        self._held, self._new = held, new

    @property
    def keys(self) -> Tensor:
        return torch.cat((self._held.keys, self._new.keys), dim=2)

    @property
    def values(self) -> Tensor:
        return torch.cat((self._held.values, self._new.values), dim=2)

    def bare(self) -> "JoinedTokens":
        return JoinedTokens(self._held, self._new, self.positions, {})

    def stored(self, place: int, kept: Tensor | None, coding: Coding | None) -> list[Tensor]:
        parts = (each.stored(place, None, coding)[:2] for each in (self._held, self._new))
        rows = [torch.cat(pair, dim=1) for pair in zip(*parts, strict=True)]
        beside = [each[:, place] for each in (self.positions, *self.signals.values())]
        return [select(each, kept) for each in (*rows, *beside)]


@dataclass
class Segment:
    """KV heads with equally many slots and tokens, which share dense calls.

    Attributes:
        heads: KV head indices.
        start: first slot of the first head in the flat storage.
        room: all slots of the heads, as views of the flat storage; the first `length` are filled.
        coding: how keys and values are stored; None as they are.
        held: how many of the slots snapshots rely on.
    """

    heads: tuple[int, ...]
    start: int
    room: Tokens
    coding: Coding | None
    length: int = 0
    held: int = 0

    @property
    def capacity(self) -> int:
        """Slots of each head."""
        return self.room.count

    def stored(self) -> Tokens:
        """What the filled slots hold, as views of the storage."""
        return self.room.part(0, self.length)

    def tokens(self) -> Tokens:
        """The tokens in the filled slots; all are views but for quantised keys and values."""
        held = self.stored()
        return held if self.coding is None else CodedTokens(held, self.coding)


class Slots:
    """Keys, values, positions and signals of one layer, each in one flat tensor.

    The filled slots of a head are always a prefix of its slots, so attention needs no mask. Their
    order carries no meaning: a key is stored with its rotation.

    Args:
        shapes: `(heads, capacity)` of each segment.
        like: keys `(batch, …, head_dim)` whose dtype and device the storage takes.
        signals: names of the signals whose numbers are kept.
        coding: quantises keys and values, which come and go turned by it; None stores them as
            they are.

    Attributes:
        like: no keys, of the dtype, the device and the shape that they have but for their number.
        keys, values: `(batch, slots, head_dim)`, or rows of bytes `(batch, slots, width)`.
        positions: `(batch, slots)` int32, the token's position in its sequence; -1 for padding.
        signals: signal → `(batch, slots)` float32, the token's number.
    """

    def __init__(
        self,
        shapes: Iterable[tuple[tuple[int, ...], int]],
        like: Tensor,
        signals: Iterable[str],
        coding: Coding | None = None,
    ) -> None:
        shapes = list(shapes)
        batch, head_dim = like.shape[0], like.shape[-1]
        slots = sum(len(heads) * capacity for heads, capacity in shapes)
        self.coding = coding
        with torch.inference_mode(False):  # what comes later may be read in either mode
            self.like = like.new_empty(batch, 0, head_dim)
            if coding is None:
                self.keys = like.new_empty(batch, slots, head_dim)
                self.values = torch.empty_like(self.keys)
            else:
                self.keys, self.values = (
                    like.new_empty(batch, slots, each.width, dtype=torch.uint8)
                    for each in (coding.codec.keys, coding.codec.values)
                )
            self.positions = like.new_empty(batch, slots, dtype=torch.int32)
            self.signals = {
                name: like.new_empty(batch, slots, dtype=torch.float32) for name in sorted(signals)
            }
        self.segments: list[Segment] = []
        start = 0
        for heads, capacity in shapes:
            stop = start + len(heads) * capacity
            room = [
                flat[:, start:stop].unflatten(1, (len(heads), capacity)) for flat in self.tensors()
            ]
            room = Tokens.of(heads, room, self.signals)
            self.segments.append(Segment(heads, start, room, coding))
            start = stop
        self._free: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Every tensor of the storage."""
        return [self.keys, self.values, self.positions, *self.signals.values()]

    def allocated_bytes(self) -> int:
        """Bytes of the storage that really exists."""
        extra = [self.coding.centre] if self.coding else []
        return sum(each.numel() * each.element_size() for each in [*self.tensors(), *extra])

    def bits(self) -> tuple[int, int]:
        """Bits of a number of a key and of a value as they are packed; 0 where they are not."""
        codec = self.coding.codec if self.coding else None
        return (codec.keys.bits, codec.values.bits) if codec else (0, 0)

    def by_segment(self, flat: Tensor | None) -> list[Tensor | None]:
        """Numbers of all slots, `(batch, slots)`, of each segment's tokens: `(batch, heads,
        tokens)`. None of None."""
        if flat is None:
            return [None] * len(self.segments)
        return [
            flat[:, each.start : each.start + len(each.heads) * each.capacity].unflatten(
                1, (len(each.heads), each.capacity)
            )[:, :, : each.length]
            for each in self.segments
        ]

    def tokens(self) -> list[Tokens]:
        """All tokens, a segment each."""
        return [segment.tokens() for segment in self.segments]

    def set_lengths(self, lengths: Iterable[int]) -> None:
        """Say how many slots of each segment's heads are filled."""
        for segment, length in zip(self.segments, lengths, strict=True):
            segment.length = length
        self._free = None

    def append(self, segment: Segment, new: Tokens) -> None:
        """Put new tokens of the segment's heads into its next free slots."""
        start, segment.length = segment.length, segment.length + new.count
        self._free = None
        if self.coding is not None:
            keys, values = self.coding.encode(new.keys, new.values, list(segment.heads))
            new = replace(new, keys=keys, values=values)
        room = segment.room.part(start, segment.length)
        for slots, tensor in zip(room.tensors(), new.tensors(), strict=True):
            slots.copy_(tensor)

    def append_one(self, new: Tokens, pack: Callable[..., None] | None = None) -> None:
        """Put one new token of all heads, in their order, into the next free slot of each.

        One write a tensor, however many segments there are: this runs at each decode step. `pack`
        is a kernel that writes keys and values (`kvbudget.cache.kernels.Store`), if there is one.
        """
        _, free = self.bounds()
        pairs = list(zip(self.tensors(), new.tensors(), strict=True))
        if pack is not None:
            pack(self, new.keys, new.values)
            pairs = pairs[2:]
        elif self.coding is not None:
            rows = self.coding.encode(new.keys, new.values, list(new.heads))
            pairs[:2] = zip((self.keys, self.values), rows, strict=True)
        for slots, tensor in pairs:
            slots.index_copy_(1, free, tensor[:, :, 0])
        free += 1
        for segment in self.segments:
            segment.length += 1

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Flat index of the first slot of each KV head and of its next free one, `(kv_heads,)`
        each. They stay on the device while tokens are appended one by one."""
        if self._free is None:
            free = self._of_heads(lambda segment: segment.length)
            with torch.inference_mode(False):  # it is counted up in place, in either mode
                self._free = torch.tensor(free, device=self.keys.device)
        return self._starts, self._free

    @cached_property
    def _starts(self) -> Tensor:
        return torch.tensor(self._of_heads(lambda segment: 0), device=self.keys.device)

    def _of_heads(self, within: Callable[[Segment], int]) -> list[int]:
        """Flat index of a slot of each KV head, which is given within the head's own."""
        found = {
            head: segment.start + i * segment.capacity + within(segment)
            for segment in self.segments
            for i, head in enumerate(segment.heads)
        }
        return [found[head] for head in sorted(found)]

    def evict(self, segment: Segment, scores: Tensor, count: int) -> None:
        """Drop the `count` lowest-scored tokens of every head of a segment, in place.

        `scores` is `(batch, heads, length)`; of equal scores the first slot goes. Tokens of the
        tail that survive move into the freed slots, at most `count` a head.
        """
        kept = segment.length - count
        if count == 1:
            victims = scores.argmin(dim=-1, keepdim=True)
            survivors = torch.full_like(victims, kept)
        else:
            victims = scores.sort(dim=-1, stable=True).indices[..., :count].sort(dim=-1).values
            # Pair each slot freed before `kept` with a surviving token of the tail. The pairs left
            # over lie in the tail on both sides and touch only slots that are free afterwards.
            tail = torch.arange(kept, segment.length, device=scores.device)
            evicted = (victims.unsqueeze(-1) == tail).any(dim=-2)
            survivors = evicted.to(torch.uint8).sort(dim=-1, stable=True).indices + kept
        for view in segment.stored().tensors():
            view.scatter_(2, _expand(victims, view), view.gather(2, _expand(survivors, view)))
        segment.length = kept
        self._free = None

    def clone(self) -> "Slots":
        """A copy that shares no memory with this one, and that no snapshot relies on."""
        shapes = [(segment.heads, segment.capacity) for segment in self.segments]
        twin = Slots(shapes, self.like, self.signals, self.coding)
        for mine, theirs in zip(twin.tensors(), self.tensors(), strict=True):
            mine.copy_(theirs)
        twin.set_lengths(segment.length for segment in self.segments)
        return twin


def select(tensor: Tensor, indices: Tensor | None) -> Tensor:
    """Tokens by index: `(batch, tokens, …)` at `(batch, n)` gives `(batch, n, …)`; all at None."""
    if indices is None:
        return tensor
    if tensor.dim() > indices.dim():
        indices = indices.unsqueeze(-1).expand(-1, -1, tensor.shape[-1])
    return tensor.gather(1, indices)


def _expand(indices: Tensor, view: Tensor) -> Tensor:
    """Indices `(batch, heads, n)` over slots, expanded to address all of `view`."""
    if view.dim() == indices.dim():
        return indices
    return indices.unsqueeze(-1).expand(-1, -1, -1, view.shape[-1])
