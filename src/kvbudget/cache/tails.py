"""What stands on top of a compressed context: questions and answers, a row each, that share it.

The keys of a context are read once a step for all rows: the queries of all rows, and of the query
heads of a KV head, are rows of one product, as in Hydragen (Juravsky et al., 2024). Beside the
context each row sees the tokens of its own. They are stored as the model gives them, and none is
evicted. Rows may be of unequal length: each token says where it stands, and padding is hidden.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbudget.cache.attention import capped
from kvbudget.cache.kernels import Attend
from kvbudget.cache.quantize import Coding
from kvbudget.cache.slots import Slots
from kvbudget.errors import UserError

#: Logits of one head that are held at once. More were slower on CPU, where they leave its caches.
BLOCK = 2**18
#: Tokens of a row that there is room for before its storage grows, by half of what it holds.
ROOM = 16


class Tail:
    """Keys and values of one layer that stand on top of its context.

    Attributes:
        keys, values: `(rows, kv_heads, room, head_dim)`, of which the first `length` are filled;
            None before the first token.
        positions: `(rows, room)`, where a token stands in its sequence; -1 for padding.
        length: tokens of each row, padding included.
        expected: positions of the tokens of the next forward pass, `(rows, new)`; None if they
            follow what was read.
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.positions: Tensor | None = None
        self.length = 0
        self.expected: Tensor | None = None
        self._shared = False  # with a snapshot, so that it must not be written to

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, positions: Tensor) -> "Tail":
        """A tail that holds tokens, `(rows, kv_heads, tokens, head_dim)`."""
        tail = cls()
        tail.keys, tail.values, tail.positions = keys, values, positions
        tail.length = positions.shape[1]
        return tail

    def append(self, key: Tensor, value: Tensor, seen: int) -> None:
        """Add new tokens, `(rows, kv_heads, new, head_dim)`, of each row after `seen` others.

        Raises:
            UserError: they are of another number of rows.
        """
        rows, new = key.shape[0], key.shape[2]
        positions, self.expected = self.expected, None
        if positions is None:
            positions = torch.arange(seen, seen + new, device=key.device).expand(rows, new)
        if self.keys is not None and rows != self.keys.shape[0]:
            raise UserError(
                f"{rows} rows follow a context with {self.keys.shape[0]} rows on top; go on with "
                "as many, or choose rows with batch_select_indices"
            )
        end = self.length + new
        if self.keys is None or self._shared or end > self.keys.shape[2]:
            self._make_room(key, end + max(ROOM, end // 2))
        self.keys[:, :, self.length : end] = key
        self.values[:, :, self.length : end] = value
        self.positions[:, self.length : end] = positions
        self.length = end

    def _make_room(self, like: Tensor, room: int) -> None:
        held = None if self.keys is None else self.held()
        rows, kv_heads, _, head_dim = like.shape
        with torch.inference_mode(False):  # what comes later may be read in either mode
            self.keys = like.new_empty(rows, kv_heads, room, head_dim)
            self.values = torch.empty_like(self.keys)
            self.positions = torch.empty(rows, room, dtype=torch.long, device=like.device)
        self._shared = False
        if held is not None:
            for mine, theirs in zip((self.keys, self.values), held[:2], strict=True):
                mine[:, :, : self.length] = theirs
            self.positions[:, : self.length] = held[2]

    def held(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and positions of the tokens that it holds, as views."""
        length = self.length
        return self.keys[:, :, :length], self.values[:, :, :length], self.positions[:, :length]

    def hidden(self, new: int) -> Tensor:
        """Which tokens each of the last `new` does not see, `(rows, new, length)`: padding, and
        those behind it."""
        positions = self.positions[:, : self.length]
        return (positions < 0)[:, None] | (positions[:, None] > positions[:, -new:, None])

    def select(self, rows: Tensor) -> None:
        """Become these rows, some of which may be the same: several answers to one question."""
        if self.keys is not None:
            self.keys, self.values, self.positions = (each[rows] for each in self.held())
            self._shared = False

    def snapshot(self) -> "Tail":
        """A twin that stays as it is. They share what they hold until one of them grows."""
        self._shared = True
        return copy.copy(self)


@dataclass(frozen=True)
class Shared:
    """What rows share of a context: some KV heads of a layer, all with equally many tokens.

    Attributes:
        heads: KV head indices.
        keys, values: `(contexts, heads, tokens, head_dim)`, or rows of bytes.
        coding: how they are stored; None as they are.
        absent: which of the last tokens are padding of contexts or heads that hold fewer,
            `(contexts, heads, last)`; None if none is.
    """

    heads: tuple[int, ...]
    keys: Tensor
    values: Tensor
    coding: Coding | None = None
    absent: Tensor | None = None

    def logits(self, query: Tensor) -> Tensor:
        """Products of scaled queries `(contexts, heads, n, head_dim)` with all keys, `(…, n,
        tokens)` float32."""
        if self.coding is None:
            return (query @ self.keys.mT).float()
        return self.coding.products(self.coding.codec.turn(query), self.keys, list(self.heads))

    def combined(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """Sums of values by weights `(contexts, heads, n, tokens)`, `(…, n, head_dim)`."""
        if self.coding is None:
            return weights.to(dtype) @ self.values
        codec = self.coding.codec
        return codec.turn_back(codec.values.combine(weights, self.values)).to(dtype)


def shared_slots(slots: Slots) -> list[Shared]:
    """What rows share of a layer's slots, a segment each."""
    parts = ((segment, segment.stored()) for segment in slots.segments)
    return [
        Shared(segment.heads, held.keys, held.values, segment.coding) for segment, held in parts
    ]


@dataclass(frozen=True)
class Seats:
    """Which context each row stands on. Contexts have equally many seats, some of which may be
    free, so that one product serves all.

    Attributes:
        contexts: how many there are.
        contexts_of_rows: index of each row's context, `(rows,)`.
        each: seats of a context.
        of_rows: the seat of each row among those of all contexts, `(rows,)`; None if rows fill all
            seats in order.
    """

    contexts: int
    contexts_of_rows: Tensor
    each: int
    of_rows: Tensor | None

    @classmethod
    def even(cls, contexts: int, rows: int, device: torch.device) -> "Seats":
        """Equally many rows of each context, those of one context together."""
        each = rows // contexts
        order = torch.arange(contexts, device=device).repeat_interleave(each)
        return cls(contexts, order, each, None)

    @classmethod
    def of(cls, contexts: int, contexts_of_rows: Tensor) -> "Seats":
        """Any rows, by the index of each one's context."""
        same = contexts_of_rows[:, None] == torch.arange(contexts, device=contexts_of_rows.device)
        before = same.cumsum(dim=0) - 1  # rows of the same context
        each = int(before.max()) + 1
        of_rows = contexts_of_rows * each + before.gather(1, contexts_of_rows[:, None])[:, 0]
        order = torch.arange(contexts * each, device=of_rows.device)
        return cls(contexts, contexts_of_rows, each, None if of_rows.equal(order) else of_rows)

    def select(self, rows: Tensor) -> "Seats":
        """Seats for these of the rows, some of which may be the same."""
        return self.of(self.contexts, self.contexts_of_rows[rows])

    def fold(self, x: Tensor) -> Tensor:
        """What rows have, `(rows, …)`, by seats: `(contexts, each, …)`, 0 at free ones."""
        if self.of_rows is not None:
            free = x.new_zeros(self.contexts * self.each, *x.shape[1:])
            x = free.index_copy_(0, self.of_rows, x)
        return x.unflatten(0, (self.contexts, self.each))

    def unfold(self, x: Tensor) -> Tensor:
        """What seats have, `(contexts, each, …)`, by rows."""
        x = x.flatten(0, 1)
        return x if self.of_rows is None else x[self.of_rows]


@dataclass(frozen=True)
class Window:
    """Of a layer that sees the last so many positions alone.

    Attributes:
        size: positions that a token sees, its own among them.
        positions: where the contexts' tokens stand, `(contexts, tokens)`.
    """

    size: int
    positions: Tensor


def attend_on_top(
    query: Tensor,
    shared: Iterable[Shared],
    tail: Tail,
    seats: Seats,
    *,
    scaling: float,
    softcap: float | None,
    window: Window | None = None,
) -> Tensor:
    """Attention from the last tokens of a tail to the context and to their rows.

    Args:
        query: `(rows, query_heads, new, head_dim)`.
        shared: the contexts, all KV heads of them.
        tail: the new tokens at its end.
        seats: which context each row stands on.
        scaling, softcap: as in `kvbudget.cache.attention`.
        window: of a layer that has one.

    Returns the output, shaped like `query`.
    """
    keys, values, positions = tail.held()
    kv_heads, new = keys.shape[1], query.shape[2]
    by_head = query.unflatten(1, (kv_heads, -1))
    hidden, far = tail.hidden(new), None
    if window is not None:
        now = positions[:, -new:, None]
        hidden = hidden | (positions[:, None] <= now - window.size)
        far = window.positions[seats.contexts_of_rows, None] <= now - window.size
    output = torch.empty_like(by_head)
    for part in shared:
        heads = slice(None) if part.heads == tuple(range(kv_heads)) else list(part.heads)
        own = by_head[:, heads] * scaling, keys[:, heads], values[:, heads]
        each = query.shape[0] * by_head.shape[2] * (part.keys.shape[2] + tail.length)
        step = max(1, BLOCK // each)
        for block in (slice(start, start + step) for start in range(0, new, step)):
            masks = hidden[:, block], None if far is None else far[:, block]
            attended = _attended(part, seats, own[0][:, :, :, block], *own[1:], softcap, *masks)
            output[:, heads, :, block] = attended
    return output.flatten(1, 2)


def _attended(
    shared: Shared,
    seats: Seats,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    softcap: float | None,
    hidden: Tensor,
    far: Tensor | None,
) -> Tensor:
    """Attention of some heads: `query` is `(rows, heads, group, new, head_dim)`, scaled; `hidden`
    says which tokens of its row a new token does not see, `far` which of the context's."""
    rows, heads, group, new, _ = query.shape
    folded = seats.fold(query).transpose(1, 2)  # rows beside the query heads
    shape = folded.shape[:-1]  # (contexts, heads, rows of a context, group, new)
    above = shared.logits(folded.flatten(2, 4)).unflatten(2, shape[2:])
    beside = (query.flatten(2, 3) @ keys.mT).float().view(rows, heads, group, new, -1)
    # Not -inf: padding may see nothing, and would be NaN.
    least = torch.finfo(torch.float32).min
    above, beside = capped(above, softcap), capped(beside, softcap)
    beside.masked_fill_(hidden[:, None, None], least)
    if (absent := shared.absent) is not None:
        last = above[..., -absent.shape[-1] :]
        last.masked_fill_(absent[:, :, None, None, None], least)
    if far is not None:
        above.masked_fill_(seats.fold(far)[:, None, :, None], least)
    tokens = above.shape[-1]
    weights = torch.cat((above, seats.fold(beside).transpose(1, 2)), dim=-1).softmax(dim=-1)
    above, beside = weights[..., :tokens].flatten(2, 4), weights[..., tokens:]
    output = shared.combined(above, query.dtype).unflatten(2, shape[2:]).transpose(1, 2)
    beside = seats.unfold(beside.transpose(1, 2)).flatten(2, 3).to(values.dtype)
    return seats.unfold(output) + (beside @ values).view_as(query)


def attend_by_kernel(
    kernel: Attend,
    query: Tensor,
    slots: Slots,
    tail: Tail,
    seats: Seats,
    *,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """As `attend_on_top`: to the context by a kernel, beside it to the tail, joined by how much of
    all attention each of them gets."""
    keys, values, _ = tail.held()
    codec = slots.coding.codec if slots.coding else None
    by_head = query.unflatten(1, (keys.shape[1], -1))  # (rows, heads, group, new, head_dim)
    folded = seats.fold(codec.turn(by_head) if codec else by_head).transpose(1, 2)
    terms = {"scaling": scaling, "softcap": softcap, "padded": False, "received": False}
    above, total, _ = kernel(folded.flatten(2, 4), slots, **terms)
    above, total = (
        seats.unfold(each.unflatten(2, folded.shape[2:5]).transpose(1, 2))
        for each in (above, total)
    )
    beside = (scaling * by_head.flatten(2, 3) @ keys.mT).float().view(*by_head.shape[:-1], -1)
    # Not -inf: padding may see nothing, and would be NaN.
    least = torch.finfo(torch.float32).min
    hidden = tail.hidden(query.shape[2])[:, None, None]
    beside = capped(beside, softcap).masked_fill(hidden, least)
    share = torch.sigmoid(total - beside.logsumexp(dim=-1)).unsqueeze(-1)
    weights = (beside.softmax(dim=-1) * (1 - share)).flatten(2, 3).to(values.dtype)
    above = (codec.turn_back(above) if codec else above) * share
    return (above + (weights @ values).view_as(above)).to(query.dtype).flatten(1, 2)


class SlidingTail:
    """What stands on top of a layer with a sliding window.

    It attends for itself, as the masks that models make for windows count padding, too.

    Args:
        keys, values: the end of the context, `(contexts, kv_heads, tokens, head_dim)`.
        seen: tokens of the context.
        window: positions that a token sees, its own among them.
    """

    def __init__(self, keys: Tensor, values: Tensor, seen: int, window: int) -> None:
        self._shared = Shared(tuple(range(keys.shape[1])), keys, values)
        positions = torch.arange(seen - keys.shape[2], seen, device=keys.device)
        self._window = Window(window, positions.expand(keys.shape[0], -1))
        self._seen, self.tail = seen, Tail()

    def update(self, key: Tensor, value: Tensor) -> tuple["SlidingTail", "SlidingTail"]:
        """Take new keys and values, `(rows, kv_heads, new, head_dim)`; return what attends."""
        self.tail.append(key, value, self._seen + self.tail.length)
        return self, self

    def attend(
        self, query: Tensor, scaling: float, softcap: float | None, mask: Tensor | None
    ) -> Tensor:
        """Attention of the new tokens, shaped like `query`; positions stand for the mask."""
        contexts = self._shared.keys.shape[0]
        seats = Seats.even(contexts, query.shape[0], query.device)
        terms = {"scaling": scaling, "softcap": softcap, "window": self._window}
        return attend_on_top(query, [self._shared], self.tail, seats, **terms)

    def snapshot(self) -> "SlidingTail":
        """A twin that stays as it is."""
        twin = copy.copy(self)
        twin.tail = self.tail.snapshot()
        return twin
