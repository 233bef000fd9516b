"""One full-attention layer of the cache: attends, scores, keeps the best, evicts in place."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from kvbudget.attention import attend, attend_one, attention_sums
from kvbudget.cache.plan import SINKS, Plan
from kvbudget.cache.slots import Slots, Tokens, select
from kvbudget.errors import UserError
from kvbudget.policies.base import Candidates
from kvbudget.positions import rotate

OBSERVATION = 32  # queries at the end of a prompt that the "window" signal sums over (SnapKV)


@dataclass(frozen=True)
class LayerOptions:
    """What the layers of one cache have in common.

    Attributes:
        plan: the budgets, and the policy that scores tokens.
        stride: tokens that may gather above the budget before a decode step evicts them.
        prefill_chunk: tokens after which a long forward pass evicts; None attends to all first.
        frequencies: inverse frequencies of the rotary embedding, where keys are moved.
    """

    plan: Plan
    stride: int = 1
    prefill_chunk: int | None = None
    frequencies: Tensor | None = None


@dataclass
class LayerSnapshot:
    """State of a layer to come back to. It shares the layer's slots until they are written to."""

    seen: int
    slots: Slots
    lengths: list[int]
    sums: dict[str, Tensor]
    planned: list[int]
    budgets: list[int]
    padded: bool
    sinks: Tensor | None
    sink_shift: int


class AttendingLayer(CacheLayerMixin):
    """A full-attention layer that attends for itself.

    `update` hands the layer itself to the registered attention function, which calls `attend`:
    only there do queries and keys meet, which scores need. Subclasses define `attend` and
    `get_seq_length`.
    """

    is_sliding = False
    _pending: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to allocate before the first attention, which knows the prompt's length."""
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Take new keys and values, `(batch, kv_heads, new, head_dim)`; return the layer itself."""
        self.is_initialized = True
        self._pending = (key_states, value_states)
        return self, self

    def take_pending(self) -> tuple[Tensor, Tensor]:
        """The keys and values of the last update, once."""
        pending, self._pending = self._pending, None
        return pending

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset that masks are made for: all tokens seen."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit on the tokens that may be seen."""
        return -1


class BudgetedLayer(AttendingLayer):
    """Keys and values of one layer within a budget per KV head.

    Args:
        index: index among the full-attention layers.
        kv_heads: KV heads of the layer.
        options: what all layers share.
    """

    def __init__(self, index: int, kv_heads: int, options: LayerOptions) -> None:
        super().__init__()
        self.index, self.kv_heads, self.options = index, kv_heads, options
        self.policy = options.plan.policy
        self.reset()

    def reset(self) -> None:
        """Forget everything, so that nothing of one sample is left in the next."""
        self.seen = 0
        self.slots: Slots | None = None
        self.planned: list[int] = []  # budgets of the heads as planned
        self.budgets: list[int] = []  # as redistributed for this prompt
        self.padded = False
        self.is_initialized = False
        self._pending = None
        self._sinks: Tensor | None = None  # keys of the sinks at their first positions
        self._sink_shift = 0

    def get_seq_length(self) -> int:
        """Tokens seen, whether kept or not: positions go on from here."""
        return self.seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        raise UserError("beam search is not supported: beams would need eviction histories each")

    # Attention and eviction.

    def attend(
        self, query: Tensor, scaling: float, softcap: float | None, padding: Tensor | None
    ) -> Tensor:
        """Attend from the new tokens to the kept ones and themselves, then evict to the budget.

        `query` is `(batch, query_heads, new, head_dim)`, `padding` `(batch, seen + new)` False at
        padding, or None. Returns the attention output, shaped like `query`.
        """
        key, value = self.take_pending()
        new = key.shape[2]
        positions = self._positions(key, padding)
        plan = self.options.plan
        plan.begin(new)
        if shift := plan.target_shift(self.seen):
            query = rotate(query, shift, self.options.frequencies)
            key = rotate(key, shift, self.options.frequencies)
        if not self.planned:
            self.planned = self.budgets = plan.budgets()[self.index]
        if new == 1 and self.slots is not None:
            return self._decode(query, key, value, positions, scaling, softcap)
        step = self.options.prefill_chunk or new
        outputs = []
        for start in range(0, new, step):
            piece = slice(start, start + step)
            chunk = (tensor[:, :, piece] for tensor in (query, key, value))
            outputs.append(self._block(*chunk, positions[:, :, piece], scaling, softcap))
        return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]

    def _positions(self, key: Tensor, padding: Tensor | None) -> Tensor:
        """Positions of the new tokens in their sequences, `(batch, kv_heads, new)` int32."""
        batch, _, new, _ = key.shape
        if padding is None:
            end = self.seen + new
            order = torch.arange(self.seen, end, dtype=torch.int32, device=key.device)
        else:
            if self.options.frequencies is not None:
                raise UserError(
                    "moving keys to other positions needs sequences of one length; use batches "
                    "without padding, or positions: absolute (StreamingLLM) and phi: auto (GPE)"
                )
            self.padded = True
            order = (padding.cumsum(dim=-1) - 1).masked_fill(~padding, -1)
            order = order[:, None, self.seen : self.seen + new].to(torch.int32)
        return order.expand(batch, self.kv_heads, new)

    def _decode(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Tensor,
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        """One token: put into a free slot, attended to, and the worst tokens evicted."""
        self._shift_sinks()
        self._make_room()
        self.seen += 1
        slots = self.slots
        outputs: list[Tensor] = [query] * self.kv_heads
        for segment in slots.segments:
            new = self._new_tokens(segment.heads, key, value, positions)
            zeros = new.positions.new_zeros(new.positions.shape, dtype=torch.float32)
            new.sums = dict.fromkeys(slots.sums, zeros)
            slots.append(segment, new)
            held = slots.tokens(segment)
            output, received = attend_one(
                self._queries(query, segment.heads),
                held.keys,
                held.values,
                scaling=scaling,
                softcap=softcap,
                valid=held.positions >= 0 if self.padded else None,
            )
            for sums in held.sums.values():
                sums.add_(received)
            self._place(outputs, output, segment.heads)
        self._evict()
        return torch.cat(outputs, dim=1)

    def _block(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Tensor,
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        """Several tokens: attended to with the kept ones; then the best of all are kept."""
        self._shift_sinks()
        self.seen += key.shape[2]
        outputs: list[Tensor] = [query] * self.kv_heads
        everything = []
        for old in self._held() or [None]:
            heads = old.heads if old else tuple(range(self.kv_heads))
            tokens = self._new_tokens(heads, key, value, positions)
            if old:
                tokens = Tokens(
                    tokens.heads,
                    torch.cat((old.keys, tokens.keys), dim=2),
                    torch.cat((old.values, tokens.values), dim=2),
                    torch.cat((old.positions, tokens.positions), dim=2),
                    old.sums,
                )
            terms = {
                "scaling": scaling,
                "softcap": softcap,
                "valid": tokens.positions >= 0 if self.padded else None,
            }
            own = self._queries(query, tokens.heads)
            self._place(outputs, attend(own, tokens.keys, tokens.values, **terms), tokens.heads)
            tokens.sums = self._sums(own, tokens, terms)
            everything.append(tokens)
        self._keep(everything)
        return torch.cat(outputs, dim=1)

    def _sums(self, query: Tensor, tokens: Tokens, terms: dict) -> dict[str, Tensor]:
        """Attention sums after a block of queries; `tokens.sums` are those before it."""
        sums = {}
        if "attention" in self.policy.signals:
            sums["attention"] = attention_sums(query, tokens.keys, **terms)
            if (old := tokens.sums.get("attention")) is not None:
                sums["attention"][..., : old.shape[-1]] += old
        if "window" in self.policy.signals:
            sums["window"] = attention_sums(query[:, :, -OBSERVATION:], tokens.keys, **terms)
            old = tokens.sums.get("window")
            if old is not None and query.shape[2] < OBSERVATION:  # too few to see for themselves
                sums["window"][..., : old.shape[-1]] += old
        return sums

    def _keep(self, everything: list[Tokens]) -> None:
        """Store all tokens where they fit, else the best within the budgets."""
        counts = {head: tokens.count for tokens in everything for head in tokens.heads}
        if all(counts[head] <= self.budgets[head] for head in counts):
            self._store(everything)
            return
        candidates = [self._candidates(tokens) for tokens in everything]
        scores = self.policy.score_layer(candidates)
        by_head = {
            head: own[:, i]
            for tokens, own in zip(everything, scores, strict=True)
            for i, head in enumerate(tokens.heads)
        }
        ordered = [by_head[head] for head in range(self.kv_heads)]
        self.budgets = self.policy.redistribute(self.index, ordered, self.planned)
        self._store(everything, ordered)

    def _store(
        self, everything: list[Tokens], scores: list[Tensor] | None = None, room: int = 0
    ) -> None:
        """Lay out new slots and fill them with the best tokens of each head, in order of position.

        Heads with equal budgets and tokens share a segment. Heads below their budget get slots for
        `room` more tokens; the rest have slots for their budget and the eviction stride.
        """
        shapes: dict[tuple[int, int], list[int]] = {}
        source = {}
        for tokens in everything:
            for i, head in enumerate(tokens.heads):
                kept = min(tokens.count, self.budgets[head]) if scores else tokens.count
                shapes.setdefault((self.budgets[head], kept), []).append(head)
                source[head] = (tokens, i)
        slots = Slots(
            (
                (tuple(heads), self._capacity(budget, kept, room))
                for (budget, kept), heads in shapes.items()
            ),
            everything[0].keys,
            self.policy.signals,
        )
        for segment, (_, kept) in zip(slots.segments, shapes, strict=True):
            parts = [
                self._best(*source[head], kept, scores[head] if scores else None)
                for head in segment.heads
            ]
            slots.append(
                segment,
                Tokens(
                    segment.heads,
                    torch.stack([part[0] for part in parts], dim=1),
                    torch.stack([part[1] for part in parts], dim=1),
                    torch.stack([part[2] for part in parts], dim=1),
                    {
                        name: torch.stack([part[3 + i] for part in parts], dim=1)
                        for i, name in enumerate(slots.sums)
                    },
                ),
            )
        self.slots = slots

    def _capacity(self, budget: int, kept: int, room: int) -> int:
        """Slots of a head that keeps `kept` tokens now."""
        full = budget + self.options.stride
        return full if kept >= budget else min(full, kept + room)

    @staticmethod
    def _best(tokens: Tokens, i: int, kept: int, scores: Tensor | None) -> list[Tensor]:
        """Tensors of the `kept` best tokens of the i-th head, earliest first on a tie."""
        own = [tensor[:, i] for tensor in tokens.tensors()]
        if kept == tokens.count:
            return own
        best = scores.sort(dim=-1, descending=True, stable=True).indices[:, :kept]
        best = best.sort(dim=-1).values
        return [select(tensor, best) for tensor in own]

    def _make_room(self) -> None:
        """Let every head have a free slot that no snapshot relies on.

        Storage that has not reached its budget yet grows.
        """
        if any(segment.length == segment.capacity for segment in self.slots.segments):
            self._store(self._held(), room=max(64, self.seen // 64))
        elif any(segment.length < segment.held for segment in self.slots.segments):
            self.slots = self.slots.clone()

    def _own_slots(self) -> None:
        """Copy the slots if a snapshot relies on them, before tokens in them change."""
        if any(segment.held for segment in self.slots.segments):
            self.slots = self.slots.clone()

    def _evict(self) -> None:
        """Evict in place what exceeds a budget by the stride."""
        over = [segment.length - self.budgets[segment.heads[0]] for segment in self.slots.segments]
        if max(over) < self.options.stride:
            return
        self._own_slots()
        candidates = [self._candidates(tokens) for tokens in self._held()]
        scores = self.policy.score_layer(candidates)
        for segment, excess, own in zip(self.slots.segments, over, scores, strict=True):
            if excess >= self.options.stride:
                self.slots.evict(segment, own, excess)

    def _held(self) -> list[Tokens]:
        """Stored tokens, a segment each; empty before anything is stored."""
        if self.slots is None:
            return []
        return [self.slots.tokens(segment) for segment in self.slots.segments]

    def _candidates(self, tokens: Tokens) -> Candidates:
        positions = tokens.positions.long()
        seen = positions.amax(dim=(1, 2), keepdim=True) + 1 if self.padded else self.seen
        budgets = tuple(self.budgets[head] for head in tokens.heads)
        return Candidates(
            tokens.heads, tokens.keys, tokens.values, positions, tokens.sums,
            layer=self.index, seen=seen, budgets=budgets,
        )  # fmt: skip

    # StreamingLLM's positions inside the cache.

    def _shift_sinks(self) -> None:
        """Move the sinks next to the window, so that positions are those inside the cache.

        Attention depends on distances alone. Moving the whole window back by the number of evicted
        tokens, as published, is moving the few sinks forward by it.
        """
        if not self.policy.relative_positions or self.slots is None:
            return
        (segment,) = self.slots.segments
        evicted = self.seen - segment.length
        if evicted == self._sink_shift:
            return
        if self._sinks is None:
            self._sinks = segment.filled(self.slots.keys)[:, :, :SINKS].clone()
        self._own_slots()
        sinks = segment.filled(self.slots.keys)[:, :, :SINKS]
        sinks.copy_(rotate(self._sinks, evicted, self.options.frequencies))
        self._sink_shift = evicted

    # Heads of a segment among all heads of the layer.

    def _new_tokens(
        self, heads: tuple[int, ...], key: Tensor, value: Tensor, positions: Tensor
    ) -> Tokens:
        if len(heads) < self.kv_heads:
            own = list(heads)
            key, value, positions = key[:, own], value[:, own], positions[:, own]
        return Tokens(heads, key, value, positions, {})

    def _queries(self, query: Tensor, heads: tuple[int, ...]) -> Tensor:
        """Queries of the query heads that read these KV heads."""
        if len(heads) == self.kv_heads:
            return query
        return query.unflatten(1, (self.kv_heads, -1))[:, list(heads)].flatten(1, 2)

    def _place(self, outputs: list[Tensor], output: Tensor, heads: tuple[int, ...]) -> None:
        """Sort the outputs of some KV heads' query heads into the order of all heads."""
        for head, own in zip(heads, output.chunk(len(heads), dim=1), strict=True):
            outputs[head] = own

    # State.

    def kept_positions(self) -> list[Tensor]:
        """Positions kept by each KV head, ascending: `(tokens,)`, in a batch `(batch, tokens)`."""
        kept: list[Tensor] = [torch.empty(0, dtype=torch.long)] * self.kv_heads
        for tokens in self._held():
            for i, head in enumerate(tokens.heads):
                kept[head] = tokens.positions[:, i].long().sort(dim=-1).values.squeeze(0)
        return kept

    def allocated_bytes(self) -> int:
        """Bytes of the storage that really exists."""
        sinks = 0 if self._sinks is None else self._sinks.numel() * self._sinks.element_size()
        return sinks + (self.slots.allocated_bytes() if self.slots else 0)

    def snapshot(self) -> LayerSnapshot:
        """The state to come back to. Slots are shared, and copied only before they change."""
        if self.slots is None:
            raise UserError("there is nothing to take a snapshot of: the cache is empty")
        for segment in self.slots.segments:
            segment.held = max(segment.held, segment.length)
        return LayerSnapshot(
            self.seen,
            self.slots,
            [segment.length for segment in self.slots.segments],
            {name: sums.clone() for name, sums in self.slots.sums.items()},
            self.planned,
            self.budgets,
            self.padded,
            self._sinks,
            self._sink_shift,
        )

    def restore(self, snapshot: LayerSnapshot) -> None:
        """Come back to a snapshot of this layer; it can be restored again."""
        self.is_initialized = True
        self.seen, self.slots, self.padded = snapshot.seen, snapshot.slots, snapshot.padded
        self.planned, self.budgets = snapshot.planned, snapshot.budgets
        self._sinks, self._sink_shift = snapshot.sinks, snapshot.sink_shift
        for segment, length in zip(self.slots.segments, snapshot.lengths, strict=True):
            segment.length = length
        for name, sums in snapshot.sums.items():
            self.slots.sums[name].copy_(sums)
