"""One full-attention layer of the cache: attends, scores, keeps the best, evicts in place."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbudget.cache.attending import AttendingLayer
from kvbudget.cache.attention import attend, attention_maxima, attention_received, attention_sums
from kvbudget.cache.budget import SINKS, UNBOUNDED
from kvbudget.cache.masks import is_causal, of_tokens, visible
from kvbudget.cache.plan import Plan
from kvbudget.cache.policy import OBSERVATION, Candidates
from kvbudget.cache.positions import Rotation
from kvbudget.cache.quantize import Coding
from kvbudget.cache.ragged import attend_slots
from kvbudget.cache.slots import Segment, Slots, Tokens, select
from kvbudget.errors import UserError

ON_READING = ("attention", "window")  # sums that grow with whatever is read


@dataclass(frozen=True)
class LayerOptions:
    """What the layers of one cache have in common.

    Attributes:
        plan: the budgets, and the policy that scores tokens.
        stride: tokens that may gather above the budget before a decode step evicts them at once,
            which spreads the cost of scoring over as many steps; None is 1/256 of the budget.
        prefill_chunk: tokens after which a long forward pass evicts; None attends to all first.
        rotations: of each full-attention layer, where keys are moved.
    """

    plan: Plan
    stride: int | None = None
    prefill_chunk: int | None = None
    rotations: tuple[Rotation, ...] | None = None


@dataclass
class LayerSnapshot:
    """State of a layer to come back to. It shares the layer's slots until they are written to."""

    seen: int
    slots: Slots
    lengths: list[int]
    sums: dict[str, Tensor]
    planned: list[int]
    budgets: list[int]
    stride: int
    padded: bool
    sinks: Tensor | None
    sink_shift: int


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
        self.stride = 1
        self.padded = False
        self.is_initialized = False
        self._pending = None
        self._visible: Tensor | None = None  # who sees whom, where that is not causality alone
        self._sinks: Tensor | None = None  # keys of the sinks at their first positions
        self._sink_shift = 0

    def get_seq_length(self) -> int:
        """Tokens seen, whether kept or not: positions go on from here."""
        return self.seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        raise UserError("beam search is not supported: beams would need eviction histories each")

    # Attention and eviction.

    def attend(
        self, query: Tensor, scaling: float, softcap: float | None, mask: Tensor | None
    ) -> Tensor:
        """Attend from the new tokens to the kept ones and themselves, then evict to the budget.

        `query` is `(batch, query_heads, new, head_dim)`, `mask` `(batch, seen + new)` False at
        padding, or says who sees whom of all tokens seen, `(batch, 1, new, seen + new)`, or None.
        Returns the attention output, shaped like `query`.
        """
        key, value = self.take_pending()
        new = key.shape[2]
        padding, own = (mask, None) if mask is None or mask.dim() == 2 else (None, mask)
        self._visible = None if own is None else self._own_mask(own, new)
        positions = self._positions(key, padding)
        plan = self.options.plan
        plan.begin(new)
        if shift := plan.target_shift(self.seen):
            query, key = self._rotation.move(query, shift), self._rotation.move(key, shift)
        codec = plan.codec
        if codec is not None:
            query, key, value = codec.turn(query), codec.turn(key), codec.turn(value)
        if self.slots is None:
            self._begin(key)
        output = self._attend(query, key, value, positions, scaling, softcap)
        self._visible = None  # as large as the prompt squared, and of these queries alone
        return output if codec is None else codec.turn_back(output)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Tensor,
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        new = key.shape[2]
        if new == 1 and self.seen > 0 and self._visible is None:
            return self._decode(query, key, value, positions, scaling, softcap)
        step = self.options.prefill_chunk or new
        outputs = []
        for start in range(0, new, step):
            piece = slice(start, start + step)
            chunk = (tensor[:, :, piece] for tensor in (query, key, value))
            outputs.append(self._block(*chunk, positions[:, :, piece], scaling, softcap))
        return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]

    def _begin(self, like: Tensor) -> None:
        """Plan for the prompt, whose length is known now; no slots yet."""
        plan = self.options.plan
        self.planned = self.budgets = plan.budgets()[self.index]
        if self.policy.reconstructs:  # all is held until the context has been repeated
            self.budgets = [UNBOUNDED] * self.kv_heads
        self.stride = self.options.stride or max(1, (plan.tokens() or 0) // 256)
        codec, heads = plan.codec, tuple(range(self.kv_heads))
        coding = None if codec is None else Coding.of(codec, like)
        self.slots = Slots([(heads, 0)], like, self.policy.sums(self.index), coding)

    def _own_mask(self, mask: Tensor, new: int) -> Tensor | None:
        """A 4-D mask as `(batch, 1, new, seen + new)` bool; None if it is causality alone."""
        mask = visible(mask, new, self.seen + new)
        if self.padded:
            raise UserError("a 4-D attention mask cannot follow a padded prompt; give one sequence")
        if is_causal(mask):
            return None
        if self.options.rotations is not None:
            raise UserError(
                "moving keys to other positions needs causal attention, and a 4-D mask is given; "
                "use positions: absolute (StreamingLLM) and phi: auto (GPE)"
            )
        if new > (self.options.prefill_chunk or new):
            raise UserError(
                "prefill_chunk reads a prompt in pieces, which a 4-D attention mask (a caller's "
                "own, or images that see all of themselves) forbids; drop it"
            )
        return mask

    @property
    def _rotation(self) -> Rotation:
        return self.options.rotations[self.index]

    def _positions(self, key: Tensor, padding: Tensor | None) -> Tensor:
        """Positions of the new tokens in their sequences, `(batch, kv_heads, new)` int32."""
        batch, _, new, _ = key.shape
        if padding is None:
            end = self.seen + new
            order = torch.arange(self.seen, end, dtype=torch.int32, device=key.device)
        else:
            if self.options.rotations is not None:
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
        self._make_room(1)
        self.seen += 1
        self.slots.append_one(key, value, positions)
        output = attend_slots(
            query, self.slots, scaling=scaling, softcap=softcap, padded=self.padded
        )
        if signals := self.slots.sums.keys() & ON_READING:
            for held in self.slots.tokens():
                own, terms = self._queries(query, held.heads), self._terms(held, scaling, softcap)
                received = attention_received(own, held.keys, **terms)
                for name in signals:
                    held.sums[name].add_(received)
        self._evict()
        return output

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
        new = key.shape[2]
        fits = all(self._excess(segment) + new <= 0 for segment in self.slots.segments)
        gather = self._appended if fits else self._joined
        everything = gather(key, value, positions)
        self.seen += new
        outputs: list[Tensor] = [query] * self.kv_heads
        for tokens in everything:
            own, terms = self._queries(query, tokens.heads), self._terms(tokens, scaling, softcap)
            keys, values = tokens.keys.to(own.dtype), tokens.values.to(own.dtype)
            output = attend(own, keys, values, **terms)
            for head, part in zip(tokens.heads, output.chunk(len(tokens.heads), 1), strict=True):
                outputs[head] = part
            self._accumulate(own, tokens, terms)
        if not fits:
            self._keep_best(everything)
        return torch.cat(outputs, dim=1)

    def _appended(self, key: Tensor, value: Tensor, positions: Tensor) -> list[Tokens]:
        """All tokens, the new ones put into free slots: nothing needs to be evicted."""
        self._make_room(key.shape[2])
        new = [self._new_tokens(each.heads, key, value, positions) for each in self.slots.segments]
        for segment, tokens in zip(self.slots.segments, new, strict=True):
            self.slots.append(segment, tokens)
        everything = self.slots.tokens()
        if self.slots.coding is not None:  # a block attends to itself as it is, stored or not
            for held, tokens in zip(everything, new, strict=True):
                held.keys[:, :, -tokens.count :] = tokens.keys
                held.values[:, :, -tokens.count :] = tokens.values
        return everything

    def _joined(self, key: Tensor, value: Tensor, positions: Tensor) -> list[Tokens]:
        """All tokens in temporary tensors, from which the best will be stored."""
        everything = []
        for old in self.slots.tokens():
            new = self._new_tokens(old.heads, key, value, positions)
            if old.count:
                pairs = zip(old.tensors(), new.tensors(), strict=True)
                new = Tokens.of(old.heads, [torch.cat(pair, dim=2) for pair in pairs], old.sums)
            everything.append(new)
        return everything

    def _accumulate(self, query: Tensor, tokens: Tokens, terms: dict) -> None:
        """Add to the tokens' sums the attention of a block of queries."""
        if "attention" in tokens.sums:
            tokens.sums["attention"] += attention_sums(query, tokens.keys, **terms)
        if "window" in tokens.sums:
            received = attention_sums(query[:, :, -OBSERVATION:], tokens.keys, **terms)
            if query.shape[2] >= OBSERVATION:  # fewer are too few to see for themselves
                tokens.sums["window"].zero_()
            tokens.sums["window"] += received
        if repeated := self.options.plan.repeated:
            # Of the whole context, attention is shared out among the sinks and the chunk alone.
            sinks = tokens.keys[:, :, : min(SINKS, repeated.start)]
            new = tokens.keys[:, :, -query.shape[2] :]
            keys = torch.cat((sinks, tokens.keys[:, :, repeated], new), dim=2)
            most = attention_maxima(query, keys, terms["scaling"], terms["softcap"])
            most = most[:, :, sinks.shape[2] : -new.shape[2]]
            tokens.sums["reconstruction"][:, :, repeated] = most

    def _scores(self, everything: list[Tokens]) -> list[Tensor]:
        """Scores of the tokens of each KV head, `(batch, tokens)` each."""
        candidates = [self._candidates(tokens) for tokens in everything]
        scores = self.policy.score_layer(candidates)
        by_head = {
            head: own[:, i]
            for tokens, own in zip(everything, scores, strict=True)
            for i, head in enumerate(tokens.heads)
        }
        return [by_head[head] for head in range(self.kv_heads)]

    def _keep_best(self, everything: list[Tokens]) -> None:
        """Store the best tokens within the budgets."""
        scores = self._scores(everything)
        self.budgets = self.policy.redistribute(self.index, scores, self.planned)
        self._store(everything, scores)

    def holds(self, tokens: int) -> bool:
        """Whether it holds so many tokens of one sequence, as they came and nothing else."""
        whole = self.seen == tokens and min(self.budgets, default=0) == UNBOUNDED
        return whole and not self.padded and self.slots.keys.shape[0] == 1

    def held_scores(self) -> list[Tensor]:
        """Scores of the tokens that each KV head holds, `(batch, tokens)` each."""
        return self._scores(self.slots.tokens())

    def compress(self, scores: list[Tensor], budgets: list[int]) -> None:
        """Keep the best of what is held, by `scores` and within `budgets` from now on."""
        self.planned = self.budgets = budgets
        self._store(self.slots.tokens(), scores)

    def forget(self, count: int) -> None:
        """Drop the last `count` tokens read, before anything is evicted."""
        self.slots.set_lengths(segment.length - count for segment in self.slots.segments)
        self.seen -= count

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
            everything[0].keys,
            self.slots.sums,
            self.slots.coding,
        )
        for segment, (_, kept, _) in zip(slots.segments, shapes, strict=True):
            parts = [
                self._best(*source[head], kept, scores[head] if scores else None)
                for head in segment.heads
            ]
            tensors = [torch.stack(own, dim=1) for own in zip(*parts, strict=True)]
            slots.append(segment, Tokens.of(segment.heads, tensors, slots.sums))
        self.slots = slots

    @staticmethod
    def _best(tokens: Tokens, i: int, kept: int, scores: Tensor | None) -> list[Tensor]:
        """Tensors of the `kept` best tokens of the i-th head, earliest first on a tie."""
        own = [tensor[:, i] for tensor in tokens.tensors()]
        if kept == tokens.count:
            return own
        best = scores.sort(dim=-1, descending=True, stable=True).indices[:, :kept]
        best = best.sort(dim=-1).values
        return [select(tensor, best) for tensor in own]

    def _make_room(self, new: int) -> None:
        """Let every head have `new` free slots that no snapshot relies on."""
        segments = self.slots.segments
        if any(segment.length + new > segment.capacity for segment in segments):
            self._store(self.slots.tokens(), room=new + max(64, self.seen // 64))
        elif any(segment.length < segment.held for segment in segments):
            self.slots = self.slots.clone()

    def _own_slots(self) -> None:
        """Copy the slots if a snapshot relies on them, before tokens in them change."""
        if any(segment.held for segment in self.slots.segments):
            self.slots = self.slots.clone()

    def _excess(self, segment: Segment) -> int:
        """Tokens of a segment's heads above their budget."""
        return segment.length - min(self.budgets[head] for head in segment.heads)

    def _evict(self) -> None:
        """Evict in place what exceeds a budget by the stride."""
        over = [self._excess(segment) for segment in self.slots.segments]
        if max(over) < self.stride:
            return
        self._own_slots()
        scores = self.policy.score_layer([self._candidates(held) for held in self.slots.tokens()])
        for segment, excess, own in zip(self.slots.segments, over, scores, strict=True):
            if excess >= self.stride:
                self.slots.evict(segment, own, excess)

    def _terms(self, tokens: Tokens, scaling: float, softcap: float | None) -> dict:
        """What attention to some tokens depends on beside queries, keys and values."""
        valid = tokens.positions >= 0 if self.padded else None
        if self._visible is not None:
            valid = of_tokens(self._visible, tokens.positions)
        return {"scaling": scaling, "softcap": softcap, "valid": valid}

    def _candidates(self, tokens: Tokens) -> Candidates:
        seen = self.seen
        if self.padded:
            seen = tokens.positions.long().amax(dim=(1, 2), keepdim=True) + 1
        budgets = tuple(self.budgets[head] for head in tokens.heads)
        return Candidates(tokens, self.index, seen, budgets)

    # StreamingLLM's positions inside the cache.

    def _shift_sinks(self) -> None:
        """Move the sinks next to the window, so that positions are those inside the cache.

        Attention depends on distances alone. Moving the whole window back by the number of evicted
        tokens, as published, is moving the few sinks forward by it.
        """
        if not self.policy.relative_positions:
            return
        (segment,) = self.slots.segments
        evicted = self.seen - segment.length
        if evicted == self._sink_shift:
            return
        if self._sinks is None:
            self._sinks = segment.room.keys[:, :, :SINKS].clone()
        self._own_slots()
        sinks = self.slots.segments[0].room.keys[:, :, :SINKS]
        sinks.copy_(self._rotation.move(self._sinks, evicted))
        self._sink_shift = evicted

    # Heads of a segment among all heads of the layer.

    def _new_tokens(
        self, heads: tuple[int, ...], key: Tensor, value: Tensor, positions: Tensor
    ) -> Tokens:
        if len(heads) < self.kv_heads:
            own = list(heads)
            key, value, positions = key[:, own], value[:, own], positions[:, own]
        received = {
            name: torch.zeros_like(positions, dtype=torch.float32) for name in self.slots.sums
        }
        return Tokens(heads, key, value, positions, received)

    def _queries(self, query: Tensor, heads: tuple[int, ...]) -> Tensor:
        """Queries of the query heads that read these KV heads."""
        if len(heads) == self.kv_heads:
            return query
        return query.unflatten(1, (self.kv_heads, -1))[:, list(heads)].flatten(1, 2)

    # State.

    def kept(self, dtype: torch.dtype) -> list[Tokens]:
        """The tokens kept, a segment each, for attention in a dtype from outside of this layer."""
        held, codec = self.slots.tokens(), self.options.plan.codec
        if codec is None:
            return held
        return [
            Tokens(
                each.heads,
                codec.turn_back(each.keys).to(dtype),
                codec.turn_back(each.values).to(dtype),
                each.positions,
                each.sums,
            )
            for each in held
        ]

    def kept_positions(self) -> list[Tensor]:
        """Positions kept by each KV head, ascending: `(tokens,)`, in a batch `(batch, tokens)`."""
        kept: list[Tensor] = [torch.empty(0, dtype=torch.long)] * self.kv_heads
        for tokens in self.slots.tokens() if self.slots else []:
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
            self.stride,
            self.padded,
            self._sinks,
            self._sink_shift,
        )

    def restore(self, snapshot: LayerSnapshot) -> None:
        """Come back to a snapshot of this layer; it can be restored again."""
        self.is_initialized = True
        self.seen, self.slots, self.padded = snapshot.seen, snapshot.slots, snapshot.padded
        self.planned, self.budgets = snapshot.planned, snapshot.budgets
        self.stride = snapshot.stride
        self._sinks, self._sink_shift = snapshot.sinks, snapshot.sink_shift
        self.slots.set_lengths(snapshot.lengths)
        for name, sums in snapshot.sums.items():
            self.slots.sums[name].copy_(sums)
