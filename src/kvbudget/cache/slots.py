"""Ragged key-value storage of one layer: every KV head owns a fixed number of slots."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Tokens:
    """Tokens of some KV heads of one layer.

    Attributes:
        heads: KV head indices.
        keys, values: `(batch, heads, tokens, head_dim)`.
        positions: `(batch, heads, tokens)` int32, positions in the sequence; -1 for padding.
        sums: signal → `(batch, heads, tokens)` float32, attention that each token received.
    """

    heads: tuple[int, ...]
    keys: Tensor
    values: Tensor
    positions: Tensor
    sums: dict[str, Tensor]

    @property
    def count(self) -> int:
        """Tokens a head."""
        return self.keys.shape[2]

    def tensors(self) -> list[Tensor]:
        return [self.keys, self.values, self.positions, *self.sums.values()]


@dataclass
class Segment:
    """KV heads with equally many slots and tokens, which share dense calls.

    `heads` are KV head indices, `start` is the first slot of the first head in the flat storage,
    and each head owns `capacity` slots, of which the first `length` are filled. Snapshots rely on
    the first `held` of them.
    """

    heads: tuple[int, ...]
    start: int
    capacity: int
    length: int = 0
    held: int = 0

    def room(self, flat: Tensor) -> Tensor:
        """All slots of the segment, a view: `(batch, slots, …)` → `(batch, heads, capacity, …)`."""
        count = len(self.heads)
        own = flat[:, self.start : self.start + count * self.capacity]
        return own.unflatten(1, (count, self.capacity))

    def filled(self, flat: Tensor) -> Tensor:
        """The filled slots, a view: `(batch, slots, …)` → `(batch, heads, length, …)`."""
        return self.room(flat)[:, :, : self.length]


class Slots:
    """Keys, values, positions and score sums of one layer, each in one flat tensor.

    The filled slots of a head are always a prefix of its slots, so attention needs no mask. Their
    order carries no meaning: a key is stored with its rotation.

    Args:
        shapes: `(heads, capacity)` of each segment.
        like: keys `(batch, kv_heads, tokens, head_dim)` whose dtype and device the storage takes.
        signals: names of the attention sums to keep.

    Attributes:
        keys, values: `(batch, slots, head_dim)`.
        positions: `(batch, slots)` int32, the token's position in its sequence; -1 for padding.
        sums: signal → `(batch, slots)` float32, the attention that the token received so far.
    """

    def __init__(
        self, shapes: Iterable[tuple[tuple[int, ...], int]], like: Tensor, signals: Iterable[str]
    ) -> None:
        self.segments: list[Segment] = []
        slots = 0
        for heads, capacity in shapes:
            self.segments.append(Segment(heads, slots, capacity))
            slots += len(heads) * capacity
        batch, head_dim = like.shape[0], like.shape[-1]
        self.keys = like.new_empty(batch, slots, head_dim)
        self.values = like.new_empty(batch, slots, head_dim)
        self.positions = like.new_empty(batch, slots, dtype=torch.int32)
        self.sums = {
            name: like.new_empty(batch, slots, dtype=torch.float32) for name in sorted(signals)
        }

    def tensors(self) -> list[Tensor]:
        """Every tensor of the storage."""
        return [self.keys, self.values, self.positions, *self.sums.values()]

    def allocated_bytes(self) -> int:
        """Bytes of the storage that really exists."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def tokens(self, segment: Segment) -> Tokens:
        """The tokens of a segment, as views of the storage."""
        return Tokens(
            segment.heads,
            segment.filled(self.keys),
            segment.filled(self.values),
            segment.filled(self.positions),
            {name: segment.filled(sums) for name, sums in self.sums.items()},
        )

    def append(self, segment: Segment, new: Tokens) -> None:
        """Put new tokens of the segment's heads into its next free slots."""
        start, segment.length = segment.length, segment.length + new.count
        for flat, tensor in zip(self.tensors(), new.tensors(), strict=True):
            segment.room(flat)[:, :, start : segment.length] = tensor

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
        for flat in self.tensors():
            view = segment.filled(flat)
            view.scatter_(2, _expand(victims, view), view.gather(2, _expand(survivors, view)))
        segment.length = kept

    def clone(self) -> "Slots":
        """A copy that shares no memory with this one, and that no snapshot relies on."""
        twin = object.__new__(Slots)
        twin.segments = [replace(segment, held=0) for segment in self.segments]
        twin.keys, twin.values = self.keys.clone(), self.values.clone()
        twin.positions = self.positions.clone()
        twin.sums = {name: sums.clone() for name, sums in self.sums.items()}
        return twin


def select(tensor: Tensor, indices: Tensor) -> Tensor:
    """Tokens by index: `(batch, tokens, …)` at `(batch, n)` gives `(batch, n, …)`."""
    if tensor.dim() > indices.dim():
        indices = indices.unsqueeze(-1).expand(-1, -1, tensor.shape[-1])
    return tensor.gather(1, indices)


def _expand(indices: Tensor, view: Tensor) -> Tensor:
    """Indices `(batch, heads, n)` over slots, expanded to address all of `view`."""
    if view.dim() == indices.dim():
        return indices
    return indices.unsqueeze(-1).expand(-1, -1, -1, view.shape[-1])
