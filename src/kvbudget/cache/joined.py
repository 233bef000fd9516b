"""Several compressed contexts side by side, and rows on top of each: weights are read once a
forward pass for all of them.

Contexts keep unequally many tokens, and so do their heads. Here they lie in one tensor a layer,
padded to the longest, as one product over all is faster than one for each by far. It is a working
copy, in the dtype of the model: what a context takes is what its own cache holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from kvbudget.cache.attending import AttendingLayer
from kvbudget.cache.cache import BudgetedCache, SlidingLayer
from kvbudget.cache.layer import BudgetedLayer
from kvbudget.cache.positions import Rotation
from kvbudget.cache.slots import Tokens
from kvbudget.cache.tails import Seats, Shared, Tail, Window, attend_on_top
from kvbudget.errors import UserError


@dataclass(frozen=True)
class Move:
    """How a layer moves what stands on top (Group Position Encoding).

    Attributes:
        rotation: of the layer.
        shifts: positions, `(contexts,)`.
    """

    rotation: Rotation
    shifts: Tensor

    def __call__(self, x: Tensor, seats: Seats) -> Tensor:
        """Queries or keys of rows, `(rows, heads, new, head_dim)`, at their positions."""
        return self.rotation.move(x, self.shifts[seats.contexts_of_rows, None, None, None])


class JoinedLayer(AttendingLayer):
    """One layer of several contexts.

    Args:
        shared: the contexts.
        seats: which context each row stands on.
        window: of a sliding layer, and where the contexts' tokens stand.
        move: of a layer whose target is numbered anew.
    """

    def __init__(
        self,
        shared: Shared,
        seats: Seats,
        window: Window | None = None,
        move: Move | None = None,
    ) -> None:
        super().__init__()
        self._shared, self._window, self._move = shared, window, move
        self.seats, self.tail = seats, Tail()
        self.is_sliding = window is not None
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens of the longest context and of what stands on top: positions are told apart."""
        return self._shared.keys.shape[2] + self.tail.length

    def attend(
        self, query: Tensor, scaling: float, softcap: float | None, mask: Tensor | None
    ) -> Tensor:
        """Attention of the new tokens, shaped like `query`; positions stand for the mask."""
        key, value = self.take_pending()
        if self._move is not None:
            query, key = self._move(query, self.seats), self._move(key, self.seats)
        self.tail.append(key, value, self.get_seq_length())
        return attend_on_top(
            query,
            [self._shared],
            self.tail,
            self.seats,
            scaling=scaling,
            softcap=softcap,
            window=self._window,
        )


@dataclass(frozen=True)
class JoinedSnapshot:
    """What stands on top, to come back to."""

    seats: Seats
    tails: list[Tail]


class JoinedCache(Cache):
    """A cache of several contexts (`join`), with rows on top of them.

    Attributes:
        seats: which context each row stands on.
    """

    def __init__(self, layers: list[JoinedLayer], seats: Seats) -> None:
        super().__init__(layers=layers)
        self.seats = seats

    def expect(self, positions: Tensor) -> None:
        """Say where the tokens of the next forward pass stand, `(rows, new)`, -1 at padding, as in
        `BudgetedCache.expect`."""
        for layer in self.layers:
            layer.tail.expected = positions

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with these of the rows, in this order; some may be the same."""
        self._sit(self.seats.select(indices))
        for layer in self.layers:
            layer.tail.select(indices)

    def snapshot(self) -> JoinedSnapshot:
        """The state to come back to."""
        return JoinedSnapshot(self.seats, [layer.tail.snapshot() for layer in self.layers])

    def restore(self, snapshot: JoinedSnapshot) -> None:
        """Come back to a snapshot of this cache; it can be restored again."""
        self._sit(snapshot.seats)
        for layer, tail in zip(self.layers, snapshot.tails, strict=True):
            layer.tail = tail.snapshot()

    def _sit(self, seats: Seats) -> None:
        self.seats = seats
        for layer in self.layers:
            layer.seats = seats


def join(
    caches: Sequence[BudgetedCache], contexts: Sequence[int], dtype: torch.dtype
) -> JoinedCache:
    """Compressed contexts side by side.

    Args:
        caches: each holds one context, of one method and model. They are emptied layer by layer, so
            that what they hold is not there twice.
        contexts: of each row, the index of the cache that it stands on.
        dtype: what the model computes in.

    Raises:
        UserError: a cache holds no compressed context, or more than one, or something on top.
    """
    if not all(cache.holds_context for cache in caches):
        raise UserError(
            "contexts are joined when each has been read and compressed, alone in a cache made "
            "with bounded='context'"
        )
    device = caches[0].budgeted[0].store.slots.keys.device
    seats = Seats.of(len(caches), torch.tensor(contexts, device=device))
    layers = []
    for own in zip(*(cache.layers for cache in caches), strict=True):
        of_kind = _sliding if isinstance(own[0], SlidingLayer) else _full
        layers.append(of_kind(own, seats, dtype))
        for layer in own:
            layer.reset()
    return JoinedCache(layers, seats)


def _full(layers: Sequence[BudgetedLayer], seats: Seats, dtype: torch.dtype) -> JoinedLayer:
    shared, move = _side_by_side([layer.context(dtype) for layer in layers]), None
    shifts = [layer.options.plan.target_shift() for layer in layers]
    if any(shifts):
        move = Move(layers[0].rotation, torch.tensor(shifts, device=shared.keys.device))
    return JoinedLayer(shared, seats, move=move)


def _sliding(layers: Sequence[SlidingLayer], seats: Seats, dtype: torch.dtype) -> JoinedLayer:
    contexts = [[layer.window()] for layer in layers]
    shared = _side_by_side(contexts)
    positions = shared.keys.new_full((len(layers), shared.keys.shape[2]), 0, dtype=torch.long)
    for own, (tokens,) in zip(positions, contexts, strict=True):
        own[: tokens.count] = tokens.positions[0, 0]
    return JoinedLayer(shared, seats, Window(layers[0].sliding_window, positions))


def _side_by_side(contexts: Sequence[Sequence[Tokens]]) -> Shared:
    """Contexts, each of segments of one sequence, in one tensor."""
    like = contexts[0][0].keys
    heads = sum(len(tokens.heads) for tokens in contexts[0])
    counts = [tokens.count for segments in contexts for tokens in segments]
    longest, least = max(counts), min(counts)
    keys = like.new_zeros(len(contexts), heads, longest, like.shape[-1])
    values = torch.zeros_like(keys)
    absent = torch.ones(keys.shape[:3], dtype=torch.bool, device=keys.device)
    for context, segments in enumerate(contexts):
        for tokens in segments:
            for place, head in enumerate(tokens.heads):
                keys[context, head, : tokens.count] = tokens.keys[0, place]
                values[context, head, : tokens.count] = tokens.values[0, place]
                absent[context, head, : tokens.count] = False
    return Shared(
        tuple(range(heads)), keys, values, absent=absent[..., least:] if least < longest else None
    )
