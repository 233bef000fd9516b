"""One full-attention layer of the cache: attends, and lets signals and store see what it reads."""

import copy
from dataclasses import dataclass, replace
from itertools import repeat

import torch
from torch import Tensor

from kvbudget.cache.attending import AttendingLayer
from kvbudget.cache.eviction import Store, StoreSnapshot
from kvbudget.cache.kernels import attend_for
from kvbudget.cache.masks import is_causal, of_tokens, visible
from kvbudget.cache.plan import Plan
from kvbudget.cache.positions import Rotation
from kvbudget.cache.quantize import Codec
from kvbudget.cache.ragged import attend_slots
from kvbudget.cache.signals import Arrival, Reading, Signal
from kvbudget.cache.sinks import Sinks
from kvbudget.cache.slots import Tokens
from kvbudget.cache.tails import Seats, Tail, attend_by_kernel, attend_on_top, shared_slots
from kvbudget.errors import UserError


@dataclass(frozen=True)
class LayerOptions:
    """What the layers of one cache have in common.

    Attributes:
        plan: the budgets, and the policy that scores tokens.
        stride: tokens that may gather above the budget before a decode step evicts them at once,
            which spreads the cost of scoring over as many steps; None is 1/256 of the budget.
        prefill_chunk: tokens after which a long forward pass evicts; None attends to all first.
        rotations: of each full-attention layer, where the policy needs them.
    """

    plan: Plan
    stride: int | None = None
    prefill_chunk: int | None = None
    rotations: tuple[Rotation, ...] | None = None


@dataclass
class LayerSnapshot:
    """State of a layer to come back to. It shares the layer's slots until they are written to."""

    seen: int
    store: Store
    kept: StoreSnapshot
    signals: list[Signal]
    sinks: Sinks | None
    tail: Tail


class BudgetedLayer(AttendingLayer):
    """Keys and values of one layer within a budget per KV head.

    Args:
        index: index among the full-attention layers.
        kv_heads: KV heads of the layer.
        options: what all layers share.

    Attributes:
        seen: tokens of the sequence so far, whether kept or not.
        store: the tokens that are kept; None before the first.
        signals: what the policy watches; none before the first token.
        sinks: where positions are those inside the cache.
        tail: what stands on top of the context.
        repeated: tokens of the context while they are repeated (`BudgetedCache.repeating`).
    """

    def __init__(self, index: int, kv_heads: int, options: LayerOptions) -> None:
        super().__init__()
        self.index, self.kv_heads, self.options = index, kv_heads, options
        self.policy = options.plan.policy
        self.reset()

    def reset(self) -> None:
        """Forget everything, so that nothing of one sample is left in the next."""
        self.seen = 0
        self.store: Store | None = None
        self.signals: list[Signal] = []
        self.repeated: slice | None = None
        self.tail = Tail()
        self.sinks = Sinks(self.rotation) if self.policy.relative_positions else None
        self.is_initialized = False
        self._pending = self._given = None
        self._visible: Tensor | None = None  # who sees whom, where that is not causality alone

    @property
    def sees_input(self) -> bool:
        """Whether the policy asks for what attention is given."""
        return self.policy.sees_input

    @property
    def rotation(self) -> Rotation | None:
        """How the layer turns queries and keys, where the policy needs it."""
        rotations = self.options.rotations
        return None if rotations is None else rotations[self.index]

    def get_seq_length(self) -> int:
        """Tokens seen, whether kept or not: positions go on from here."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset that masks are made for; asked before a forward pass computes."""
        self.options.plan.check(query_length, self.seen)
        return super().get_mask_sizes(query_length)

    @property
    def on_top(self) -> bool:
        """Whether what comes next stands on top of a context that has been compressed."""
        store = self.store
        return store is not None and self.options.plan.ended(self.seen) and not store.waits

    @property
    def holds_context(self) -> bool:
        """Whether it holds one sequence, a compressed context, and nothing on top of it."""
        return self.on_top and not self.tail.length and self.store.holds_one

    # Attention.

    def attend(
        self, query: Tensor, scaling: float, softcap: float | None, mask: Tensor | None
    ) -> Tensor:
        """Attend from the new tokens to the kept ones and themselves, then evict to the budget.

        `query` is `(batch, query_heads, new, head_dim)`, `mask` `(batch, seen + new)` False at
        padding, or says who sees whom of all tokens seen, `(batch, 1, new, seen + new)`, or None.
        Returns the attention output, shaped like `query`.
        """
        (key, value), given = self.take_pending(), self.take_given()
        new = key.shape[2]
        self.options.plan.check(new, self.seen)
        self.options.plan.begin(new)
        query, key = self._renumbered(query), self._renumbered(key)
        if self.store is None:
            self._begin(key)
        padding, own = (mask, None) if mask is None or mask.dim() == 2 else (None, mask)
        self._visible = None if own is None else self._own_mask(own, new)
        if self.on_top:
            return self._attend_on_top(query, key, value, padding, scaling, softcap)
        positions = self._positions(key, padding)
        step = self.options.prefill_chunk or new
        if new <= step:
            output = self._read(query, key, value, positions, given, scaling, softcap)
            self._visible = None  # as large as the prompt squared, and of these queries alone
            return output
        whole = (each.split(step, dim=2) for each in (query, key, value, positions))
        inputs = repeat(None) if given is None else given.split(step, dim=1)
        pieces = zip(*whole, inputs)  # noqa: B905 as many inputs as there are pieces
        return torch.cat([self._read(*piece, scaling, softcap) for piece in pieces], dim=2)

    def _begin(self, key: Tensor) -> None:
        """Plan for the prompt, whose length is known now; no slots yet."""
        plan = self.options.plan
        if plan.known:
            plan.budgets()  # refused early, if at all; and by which a policy may choose its signals
        self.signals = list(self.policy.signals(self.index))
        names = [signal.name for signal in self.signals]
        # In one layout, as what is adopted has another than what is read, and sums would differ.
        like = key if plan.codec is None else plan.codec.turn(key.contiguous())
        self.store = Store(self.index, plan, self.options.stride, names, like)

    def _renumbered(self, x: Tensor) -> Tensor:
        """Queries or keys, those of the target moved (Group Position Encoding)."""
        plan = self.options.plan
        source = max(0, plan.prompt_tokens - self.seen)
        if not (shift := plan.target_shift()) or source >= x.shape[2]:
            return x
        target = self.rotation.move(x[:, :, source:], shift)
        return torch.cat((x[:, :, :source], target), dim=2)

    def _own_mask(self, mask: Tensor, new: int) -> Tensor | None:
        """A 4-D mask as `(batch, 1, new, seen + new)` bool; None if it is causality alone."""
        mask = visible(mask, new, self.seen + new)
        if self.store.padded:
            raise UserError("a 4-D attention mask cannot follow a padded prompt; give one sequence")
        if is_causal(mask):
            return None
        if self.policy.moves_keys:
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

    def _positions(self, key: Tensor, padding: Tensor | None) -> Tensor:
        """Positions of the new tokens in their sequences, `(batch, kv_heads, new)` int32."""
        batch, _, new, _ = key.shape
        if padding is None:
            end = self.seen + new
            order = torch.arange(self.seen, end, dtype=torch.int32, device=key.device)
        else:
            if self.policy.moves_keys:
                raise UserError(
                    "moving keys to other positions needs sequences of one length; use batches "
                    "without padding, or positions: absolute (StreamingLLM) and phi: auto (GPE)"
                )
            self.store.padded = True
            order = (padding.cumsum(dim=-1) - 1).masked_fill(~padding, -1)
            order = order[:, None, self.seen : self.seen + new].to(torch.int32)
        return order.expand(batch, self.kv_heads, new)

    def _read(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        positions: Tensor,
        given: Tensor | None,
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        """Attend from tokens that are read at once, and evict."""
        numbers = self._arrive(query, key, value, positions, given)
        new = Tokens(tuple(range(self.kv_heads)), key, value, positions, numbers)
        if self.seen == 0:
            return self._first(query, new, scaling, softcap)
        codec = self.options.plan.codec
        if codec is not None:
            query, new = codec.turn(query), _turned(new, codec)
        if self.sinks is not None:
            self.sinks.follow(self.store, self.seen)
        single = new.count == 1 and self._visible is None
        read = self._decode if single else self._block
        output = read(query, new, scaling, softcap)
        return output if codec is None else codec.turn_back(output)

    def _first(self, query: Tensor, new: Tokens, scaling: float, softcap: float | None) -> Tensor:
        """The first tokens, which attend to each other alone: what the layer passes on depends
        neither on what is kept of them nor on how it is stored."""
        self.seen = new.count
        reading = replace(self._reading(query, new, scaling, softcap, new.count), codec=None)
        output = reading.attended()
        for signal in self._growing():
            signal.observe_layer([reading])
        self._keep(new)
        return output

    def _keep(self, first: Tokens) -> None:
        """Store the first tokens, or the best of them."""
        # In one layout, as in `_begin`.
        kept = replace(first, keys=first.keys.contiguous(), values=first.values.contiguous())
        if (codec := self.options.plan.codec) is not None:
            kept = _turned(kept, codec)
        if self.store.fits(kept.count):
            self.store.append(kept)
        else:
            self.store.keep_best([kept], self.seen)

    def _decode(self, query: Tensor, new: Tokens, scaling: float, softcap: float | None) -> Tensor:
        """One token: put into a free slot, attended to, and the worst tokens evicted."""
        self.store.append_one(new)
        self.seen += 1
        slots, padded = self.store.slots, self.store.padded
        growing = self._growing()
        terms = {"scaling": scaling, "softcap": softcap, "received": bool(growing)}
        output, received = attend_slots(query, slots, padded=padded, **terms)
        if growing:
            readings = [
                self._reading(query, held, scaling, softcap, 1, known)
                for held, known in zip(slots.tokens(), received, strict=True)
            ]
            for signal in growing:
                signal.observe_layer(readings)
        self.store.evict(self.seen)
        return output

    def _block(self, query: Tensor, new: Tokens, scaling: float, softcap: float | None) -> Tensor:
        """Several tokens: attended to with the kept ones; then the best of all are kept."""
        fits = self.store.fits(new.count)
        everything = self.store.append(new) if fits else self.store.joined(new)
        self.seen += new.count
        outputs: list[Tensor] = [query] * self.kv_heads
        growing, readings = self._growing(), []
        for tokens in everything:
            reading = self._reading(query, tokens, scaling, softcap, new.count)
            output = reading.attended()
            for head, part in zip(tokens.heads, output.chunk(len(tokens.heads), 1), strict=True):
                outputs[head] = part
            if growing:  # else the keys of one segment are there at a time
                readings.append(reading)
        for signal in growing:
            signal.observe_layer(readings)
        if not fits:
            self.store.keep_best(everything, self.seen)
        return torch.cat(outputs, dim=1)

    def _attend_on_top(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        padding: Tensor | None,
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        """Tokens that the budget is not for, of any number of rows that share the context."""
        if padding is not None or self.store.padded or self._visible is not None:
            raise UserError(
                "bounded: context takes sequences of one length and causal attention; give "
                "batches without padding and no mask of your own, or use bounded: always"
            )
        contexts = self.store.slots.keys.shape[0]
        if query.shape[0] % contexts:
            raise UserError(
                f"{contexts} contexts cannot be shared by {query.shape[0]} rows; give as many rows "
                "to each"
            )
        self._settle()
        self.tail.append(key, value, self.seen)
        self.seen += key.shape[2]
        slots, seats = self.store.slots, Seats.even(contexts, query.shape[0], query.device)
        terms = {"scaling": scaling, "softcap": softcap}
        if kernel := attend_for(slots):
            return attend_by_kernel(kernel, query, slots, self.tail, seats, **terms)
        return attend_on_top(query, shared_slots(slots), self.tail, seats, **terms)

    def _settle(self) -> None:
        """Move the sinks to where they stay, now that the context is at its end."""
        if self.sinks is not None:
            self.sinks.follow(self.store, self.seen - self.tail.length)

    # Signals.

    def _arrive(
        self, query: Tensor, key: Tensor, value: Tensor, positions: Tensor, given: Tensor | None
    ) -> dict[str, Tensor]:
        """The numbers that new tokens come with."""
        in_prompt = self.seen < self.options.plan.prompt_tokens
        first = None if self.store.padded else self.seen
        arrival = Arrival(query, key, value, positions, first, in_prompt, self.rotation, given)
        signals = self.signals if self.repeated is None else ()
        arrived = {signal.name: signal.arrive(arrival) for signal in signals}
        return {
            name: torch.zeros(positions.shape, device=key.device)
            if (own := arrived.get(name)) is None
            else own
            for name in self.store.slots.signals
        }

    def _growing(self) -> list[Signal]:
        """The signals that grow by what is being read."""
        repeating = self.repeated is not None
        return [
            each for each in self.signals if each.in_repetition == repeating and not each.of_arrival
        ]

    def _reading(
        self,
        query: Tensor,
        tokens: Tokens,
        scaling: float,
        softcap: float | None,
        new: int,
        received: Tensor | None = None,
    ) -> Reading:
        plan = self.options.plan
        return Reading(
            query=self._queries(query, tokens.heads),
            tokens=tokens,
            scaling=scaling,
            softcap=softcap,
            valid=self._valid(tokens),
            seen=self.seen,
            in_prompt=self.seen - new < plan.prompt_tokens,
            prompt_read=self.seen >= plan.prompt_tokens,
            repeated=self.repeated,
            rotation=self.rotation,
            codec=plan.codec,
            known={} if received is None else {new: received},
        )

    def _valid(self, tokens: Tokens) -> Tensor | None:
        """Which tokens may be attended to, as in `kvbudget.cache.attention`."""
        if self._visible is not None:
            return of_tokens(self._visible, tokens.positions)
        return tokens.positions >= 0 if self.store.padded else None

    def _queries(self, query: Tensor, heads: tuple[int, ...]) -> Tensor:
        """Queries of the query heads that read these KV heads."""
        if heads == tuple(range(self.kv_heads)):
            return query
        return query.unflatten(1, (self.kv_heads, -1))[:, list(heads)].flatten(1, 2)

    # Adopting, taking back, choosing rows, and compressing at once.

    def adopt(self, prompt: Tokens) -> None:
        """Take a prompt that was read elsewhere, one sequence, as if it had been read here.

        `prompt` has keys and values as the model gives them, and the numbers of all signals. Its
        tensors are not written to, and none of them is kept.

        Raises:
            UserError: the layer holds tokens, or its policy needs a signal that was not recorded,
                or what attention was given.
        """
        if self.sees_input:
            raise UserError(
                "the method sees what attention is given, which a prefill does not hold; read the "
                "prompt"
            )
        if self.store is not None:
            raise UserError("a prompt is adopted by an empty cache; call reset() first")
        self.options.plan.begin(prompt.count)
        self._begin(prompt.keys)
        needed = self.store.slots.signals
        found = prompt.signals | self._of_arrival(prompt)
        if missing := [each.name for each in self._growing() if each.name not in found]:
            raise UserError(
                f"the prefill does not hold the signal {missing[0]!r}, by which the method keeps "
                "tokens; record it anew with the signals of this method"
            )
        # What grows with a repetition has not begun to.
        none = torch.zeros(prompt.positions.shape, device=prompt.keys.device)
        numbers = {name: found.get(name, none) for name in needed}
        self.seen = prompt.count
        self._keep(replace(prompt, signals=numbers))
        self.is_initialized = True

    def _of_arrival(self, prompt: Tokens) -> dict[str, Tensor]:
        """Numbers of the signals that follow from what arrives alone."""
        arrival = Arrival(
            None, prompt.keys, prompt.values, prompt.positions, 0, True, self.rotation
        )
        return {each.name: each.arrive(arrival) for each in self.signals if each.of_arrival}

    def batch_select_indices(self, indices: Tensor) -> None:
        """Let what stands on top of the context become these of its rows. Refused elsewhere."""
        if not self.tail.length:
            super().batch_select_indices(indices)
        self.tail.select(indices)

    def forget(self, count: int) -> None:
        """Drop the last `count` tokens read, before anything is evicted."""
        self.store.forget(count)
        self.seen -= count

    def check_crop(self) -> None:
        """See that tokens can be taken back.

        Raises:
            UserError: others were evicted for them, or signals have grown with them; or they stand
                on top of a context.
        """
        if self.tail.length:
            raise UserError(
                "tokens on top of a context cannot be taken back; use snapshot() and restore(), or "
                "bounded: always"
            )
        if self.store is not None and not self.store.holds_all(self.seen):
            raise UserError(
                "tokens cannot be taken back once others were evicted for them; use snapshot() and "
                "restore(), or method 'full'"
            )
        if self.signals:
            raise UserError(
                "tokens cannot be taken back, as they have had a say in what is evicted next; use "
                "snapshot() and restore(), or method 'full'"
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` tokens, as transformers puts it."""
        if tokens_to_remove:
            self.forget(-tokens_to_remove)

    def awaits(self, tokens: int) -> bool:
        """Whether it holds so many tokens of one sequence until they are compressed."""
        return self.store is not None and self.seen == tokens and self.store.awaits(tokens)

    def held_scores(self) -> list[Tensor]:
        """Scores of the tokens that each KV head holds, `(batch, tokens)` each."""
        return self.store.held_scores(self.seen)

    # State.

    def kept(self, dtype: torch.dtype) -> list[Tokens]:
        """The tokens kept, a segment each, for attention in a dtype from outside of this layer."""
        held, codec = self.store.slots.tokens(), self.options.plan.codec
        if codec is None:
            return held
        return [
            Tokens(
                each.heads,
                codec.turn_back(each.keys).to(dtype),
                codec.turn_back(each.values).to(dtype),
                each.positions,
                each.signals,
            )
            for each in held
        ]

    def context(self, dtype: torch.dtype) -> list[Tokens]:
        """The tokens kept of a compressed context, as what stands on top of it sees them."""
        self._settle()
        return self.kept(dtype)

    def kept_positions(self) -> list[Tensor]:
        """Positions kept by each KV head, ascending: `(tokens,)`, in a batch `(batch, tokens)`.
        What stands on top of the budget is not among them."""
        kept: list[Tensor] = [torch.empty(0, dtype=torch.long)] * self.kv_heads
        for tokens in self.store.slots.tokens() if self.store else []:
            for i, head in enumerate(tokens.heads):
                kept[head] = tokens.positions[:, i].long().sort(dim=-1).values.squeeze(0)
        return kept

    def allocated_bytes(self) -> int:
        """Bytes of the storage that really exists, without what stands on top of the budget."""
        beside = [*self.signals, *([self.sinks] if self.sinks else [])]
        stored = self.store.slots.allocated_bytes() if self.store else 0
        return stored + sum(each.held_bytes() for each in beside)

    def snapshot(self) -> LayerSnapshot:
        """The state to come back to. Slots are shared, and copied only before they change."""
        if self.store is None:
            raise UserError("there is nothing to take a snapshot of: the cache is empty")
        signals = list(map(copy.copy, self.signals))
        return LayerSnapshot(
            seen=self.seen,
            store=self.store,
            kept=self.store.snapshot(),
            signals=signals,
            sinks=copy.copy(self.sinks),
            tail=self.tail.snapshot(),
        )

    def restore(self, snapshot: LayerSnapshot) -> None:
        """Come back to a snapshot of this layer; it can be restored again."""
        self.is_initialized = True
        self.seen, self.sinks = snapshot.seen, copy.copy(snapshot.sinks)
        self.signals = list(map(copy.copy, snapshot.signals))
        self.store, self.tail = snapshot.store, snapshot.tail.snapshot()
        self.store.restore(snapshot.kept)


def _turned(tokens: Tokens, codec: Codec) -> Tokens:
    """Tokens in the basis in which keys and values are quantised."""
    return replace(tokens, keys=codec.turn(tokens.keys), values=codec.turn(tokens.values))
