"""What one layer holds: slots for its heads within their budgets, and which tokens go."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbudget.cache.budget import UNBOUNDED
from kvbudget.cache.kernels import store_for
from kvbudget.cache.plan import Plan
from kvbudget.cache.policy import Candidates
from kvbudget.cache.quantize import Coding
from kvbudget.cache.slots import JoinedTokens, Segment, Slots, Tokens


@dataclass
class StoreSnapshot:
    """State of a store to come back to. It shares the slots until they are written to."""

    slots: Slots
    lengths: list[int]
    signals: dict[str, Tensor]
    planned: list[int]
    budgets: list[int]
    stride: int
    padded: bool


class Store:
    """The tokens of one layer: takes new ones, keeps the best within the budgets.

    Args:
        index: index among the full-attention layers.
        plan: budgets of all heads, and the policy that scores tokens.
        stride: tokens that may gather above a budget before they are evicted at once; None is 1/256
            of the budget.
        signals: names of the policy's signals.
        like: the first keys, `(batch, kv_heads, new, head_dim)`, turned if the plan quantises.

    Attributes:
        slots: the storage.
        planned: tokens that each KV head may keep before its prompt has had a say.
        budgets: tokens that each KV head may keep.
        stride: as given, or worked out.
        padded: whether some tokens are padding.
    """

    def __init__(
        self, index: int, plan: Plan, stride: int | None, signals: list[str], like: Tensor
    ) -> None:
        self.index, self.plan = index, plan
        self.kv_heads, self._stride = like.shape[1], stride
        if plan.policy.holds_context:  # evicts nothing before it has seen the whole of it
            self.planned = self.budgets = [UNBOUNDED] * self.kv_heads
            self.stride = 1
        else:
            self._keep_within(plan.budgets()[index])
        self.padded = False
        coding = None if plan.codec is None else Coding.of(plan.codec, like)
        self.slots = Slots([(tuple(range(self.kv_heads)), 0)], like, signals, coding)

    def _keep_within(self, budgets: list[int]) -> None:
        self.planned = self.budgets = budgets
        self.stride = self._stride or max(1, (self.plan.tokens() or 0) // 256)

    # New tokens.

    def fits(self, new: int) -> bool:
        """Whether every head can hold so many more within its budget."""
        return all(self._excess(segment) + new <= 0 for segment in self.slots.segments)

    def append_one(self, new: Tokens) -> None:
        """Put one new token of all heads into free slots, whatever the budgets."""
        self._make_room(1)
        self.slots.append_one(new, store_for(self.slots))

    def append(self, new: Tokens) -> list[Tokens]:
        """Put new tokens of all heads into free slots, as they fit. Returns all that is held, the
        new tokens last; where the store quantises, the new ones as they came."""
        self._make_room(new.count)
        before = self.slots.tokens()
        parts = [_of_heads(new, held.heads) for held in before]
        for segment, part in zip(self.slots.segments, parts, strict=True):
            self.slots.append(segment, part)
        after = self.slots.tokens()
        if self.slots.coding is None:
            return after
        return [
            JoinedTokens(held, part, both.positions, both.signals)
            for held, part, both in zip(before, parts, after, strict=True)
        ]

    def joined(self, new: Tokens) -> list[Tokens]:
        """All that is held and new tokens of all heads, the new ones last, from which `keep_best`
        stores the best."""
        everything = []
        for held in self.slots.tokens():
            part = _of_heads(new, held.heads)
            positions = torch.cat((held.positions, part.positions), dim=2)
            signals = {
                name: torch.cat((numbers, part.signals[name]), dim=2)
                for name, numbers in held.signals.items()
            }
            everything.append(JoinedTokens(held, part, positions, signals))
        return everything

    # Eviction.

    def keep_best(self, everything: list[Tokens], seen: int) -> None:
        """Store the best tokens within the budgets, of `seen` tokens so far."""
        scores = self._scores(everything, seen)
        self.budgets = self.plan.policy.redistribute(self.index, scores, self.planned)
        self._store(self._worth_keeping(everything, seen), scores)

    def evict(self, seen: int) -> None:
        """Evict in place what exceeds a budget by the stride."""
        over = [self._excess(segment) for segment in self.slots.segments]
        if max(over) < self.stride:
            return
        self.own_slots()
        candidates = [self._candidates(held, seen) for held in self.slots.tokens()]
        scores = self.plan.policy.score_layer(candidates)
        for segment, excess, own in zip(self.slots.segments, over, scores, strict=True):
            if excess >= self.stride:
                self.slots.evict(segment, own, excess)

    def held_scores(self, seen: int) -> list[Tensor]:
        """Scores of the tokens that each KV head holds, `(batch, tokens)` each."""
        return self._scores(self.slots.tokens(), seen)

    def compress(self, scores: list[Tensor], budgets: list[int], seen: int) -> None:
        """Keep the best of what is held, by `scores` and within `budgets` from now on."""
        self._keep_within(budgets)
        self._store(self._worth_keeping(self.slots.tokens(), seen), scores)

    def forget(self, count: int) -> None:
        """Drop the last `count` tokens of every head, before anything is evicted."""
        self.slots.set_lengths(segment.length - count for segment in self.slots.segments)

    def holds_all(self, seen: int) -> bool:
        """Whether it has all of `seen` tokens, none of them evicted."""
        return all(segment.length == seen for segment in self.slots.segments)

    @property
    def waits(self) -> bool:
        """Whether a context is held until it is compressed."""
        return self.plan.policy.holds_context and min(self.budgets) == UNBOUNDED

    @property
    def holds_one(self) -> bool:
        """Whether it holds one sequence alone, without padding."""
        return not self.padded and self.slots.keys.shape[0] == 1

    def awaits(self, tokens: int) -> bool:
        """Whether it holds so many tokens of one sequence until they are compressed."""
        return self.waits and self.holds_all(tokens) and self.holds_one

    def _worth_keeping(self, everything: list[Tokens], seen: int) -> list[Tokens]:
        """The tokens, without the numbers of signals once these have had their last say."""
        return [each.bare() for each in everything] if self.plan.ended(seen) else everything

    def _scores(self, everything: list[Tokens], seen: int) -> list[Tensor]:
        """Scores of the tokens of each KV head, `(batch, tokens)` each."""
        candidates = [self._candidates(tokens, seen) for tokens in everything]
        scores = self.plan.policy.score_layer(candidates)
        by_head = {
            head: own[:, i]
            for tokens, own in zip(everything, scores, strict=True)
            for i, head in enumerate(tokens.heads)
        }
        return [by_head[head] for head in range(self.kv_heads)]

    def _candidates(self, tokens: Tokens, seen: int) -> Candidates:
        if self.padded:
            seen = tokens.positions.long().amax(dim=(1, 2), keepdim=True) + 1
        budgets = tuple(self.budgets[head] for head in tokens.heads)
        return Candidates(tokens, self.index, seen, budgets)

    def _excess(self, segment: Segment) -> int:
        """Tokens of a segment's heads above their budget."""
        return segment.length - min(self.budgets[head] for head in segment.heads)

    # Storage.

    def _store(
        self, everything: list[Tokens], scores: list[Tensor] | None = None, room: int = 0
    ) -> None:
        """Lay out new slots and fill them with the best tokens of each head, in order of position.

        A head's slots are its budget and the eviction stride; below its budget, what it holds and
        `room` more. Heads with equally many share a segment.
        """
        shapes: dict[tuple[int, int, bool], list[int]] = {}
        source = {}
        for tokens in everything:
            for i, head in enumerate(tokens.heads):
                kept = min(tokens.count, self.budgets[head]) if scores else tokens.count
                final = self.budgets[head] + self.stride
                capacity = final if kept >= self.budgets[head] else min(final, kept + room)
                shapes.setdefault((capacity, kept, capacity == final), []).append(head)
                source[head] = (tokens, i)
        slots = Slots(
            ((tuple(heads), capacity) for (capacity, _, _), heads in shapes.items()),
            self.slots.like,
            everything[0].signals,
            self.slots.coding,
        )
        slots.set_lengths(kept for _, kept, _ in shapes)
        for segment in slots.segments:
            held = segment.stored()
            for place, head in enumerate(segment.heads):
                tokens, i = source[head]
                best = None
                if segment.length < tokens.count:
                    best = _best(scores[head], segment.length)
                stored = tokens.stored(i, best, slots.coding)
                for mine, theirs in zip(held.tensors(), stored, strict=True):
                    mine[:, place] = theirs
        self.slots = slots

    def _make_room(self, new: int) -> None:
        """Let every head have `new` free slots that no snapshot relies on."""
        segments = self.slots.segments
        if any(segment.length + new > segment.capacity for segment in segments):
            longest = max(segment.length for segment in segments)
            self._store(self.slots.tokens(), room=new + max(64, longest // 64))
        elif any(segment.length < segment.held for segment in segments):
            self.slots = self.slots.clone()

    def own_slots(self) -> None:
        """Copy the slots if a snapshot relies on them, before tokens in them change."""
        if any(segment.held for segment in self.slots.segments):
            self.slots = self.slots.clone()

    # State.

    def snapshot(self) -> StoreSnapshot:
        """The state to come back to. Slots are shared, and copied only before they change."""
        for segment in self.slots.segments:
            segment.held = max(segment.held, segment.length)
        return StoreSnapshot(
            self.slots,
            [segment.length for segment in self.slots.segments],
            {name: numbers.clone() for name, numbers in self.slots.signals.items()},
            self.planned,
            self.budgets,
            self.stride,
            self.padded,
        )

    def restore(self, snapshot: StoreSnapshot) -> None:
        """Come back to a snapshot of this store; it can be restored again."""
        self.slots, self.padded = snapshot.slots, snapshot.padded
        self.planned, self.budgets = snapshot.planned, snapshot.budgets
        self.stride = snapshot.stride
        self.slots.set_lengths(snapshot.lengths)
        for name, numbers in snapshot.signals.items():
            self.slots.signals[name].copy_(numbers)


def _of_heads(tokens: Tokens, heads: tuple[int, ...]) -> Tokens:
    """Tokens of some of all KV heads."""
    if heads == tokens.heads:
        return tokens
    own = [tensor[:, list(heads)] for tensor in tokens.tensors()]
    return Tokens.of(heads, own, tokens.signals)


def _best(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` best tokens of a head, ascending, the earliest on a tie: `(batch,
    count)`, by scores `(batch, tokens)`."""
    best = scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    return best.sort(dim=-1).values
