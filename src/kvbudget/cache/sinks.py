"""StreamingLLM's positions inside the cache: the sinks follow the window."""

from torch import Tensor

from kvbudget.cache.budget import SINKS
from kvbudget.cache.eviction import Store
from kvbudget.cache.positions import Rotation


class Sinks:
    """The sinks of one layer, moved next to the window when tokens between them were evicted.

    Attention depends on distances alone. Moving the whole window back by the number of evicted
    tokens, as published, is moving the few sinks forward by it. Its attributes are replaced, never
    written to, so that a shallow copy is a snapshot.

    Args:
        rotation: how the layer turns keys.

    Attributes:
        first: keys of the sinks at their first positions, `(batch, kv_heads, sinks, head_dim)`;
            None before they have moved.
        shift: positions that they have moved by.
    """

    def __init__(self, rotation: Rotation) -> None:
        self.rotation = rotation
        self.first: Tensor | None = None
        self.shift = 0

    def follow(self, store: Store, seen: int) -> None:
        """Move the sinks of a store in which all heads hold equally many of `seen` tokens."""
        (segment,) = store.slots.segments
        evicted = seen - segment.length
        if evicted == self.shift:
            return
        if self.first is None:
            self.first = segment.room.keys[:, :, :SINKS].clone()
        store.own_slots()
        sinks = store.slots.segments[0].room.keys[:, :, :SINKS]
        sinks.copy_(self.rotation.move(self.first, evicted))
        self.shift = evicted

    def held_bytes(self) -> int:
        """Bytes of the keys at their first positions."""
        return 0 if self.first is None else self.first.numel() * self.first.element_size()
