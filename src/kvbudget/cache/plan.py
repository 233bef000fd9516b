"""Budgets: how they are given, and what they are in tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvbudget.errors import UserError

if TYPE_CHECKING:  # a policy imports this module, which the study does without torch
    from kvbudget.cache.quantize import Codec
    from kvbudget.policies.base import Policy

SINKS = 4  # attention sinks (Xiao et al., 2024) that every bounded method keeps
MINIMUM = 2 * SINKS  # tokens: a cache must hold the sinks and as many recent tokens to work
UNBOUNDED = 2**62  # tokens; the budget of a head that keeps everything


@dataclass(frozen=True)
class Geometry:
    """What a budget is spread over: the full-attention layers of a model and their heads.

    `layers` are the indices of the full-attention layers. Sliding-window layers are bounded
    already and take no part in the budget.
    """

    layers: tuple[int, ...]
    kv_heads: int
    query_heads: int
    head_dim: int

    def planned_bytes(self, tokens: int, itemsize: int) -> int:
        """Bytes of keys and values at `tokens` cached tokens per KV head, one sequence."""
        return tokens * len(self.layers) * self.kv_heads * 2 * self.head_dim * itemsize


def budget_in_tokens(budget: int | str | None, prompt_tokens: int) -> int | None:
    """A budget in mean tokens per KV head: `2048` as it is, `"20%"` as a share of the prompt.

    None means no bound. Raises `UserError` for anything else, and for a budget that cannot hold
    the attention sinks and as many recent tokens.
    """
    if budget is None:
        return None
    if isinstance(budget, str) and budget.endswith("%"):
        try:
            share = float(budget[:-1]) / 100
        except ValueError:
            raise UserError(f"budget {budget!r} is not a share like '20%'") from None
        if not 0 < share <= 1:
            raise UserError(f"budget {budget!r} must lie above 0% and at most at 100%")
        tokens = round(share * prompt_tokens)
    elif isinstance(budget, int) and not isinstance(budget, bool):
        tokens = budget
    else:
        raise UserError(f"budget {budget!r} is neither tokens (2048) nor a share ('20%')")
    if tokens < MINIMUM:
        raise UserError(
            f"budget {budget!r} is {tokens} tokens per KV head, fewer than the {MINIMUM} that "
            f"attention sinks and recent tokens need; raise it to {MINIMUM} or more"
        )
    return tokens


class Plan:
    """What the layers of one cache share about the prompt: its length, and so the budgets.

    Args:
        policy: spreads the budget over the heads.
        geometry: the heads that the budget is spread over.
        budget: tokens, a share of the prompt, or None for no bound.
        prompt_tokens: length of the prompt; by default the first forward pass is the prompt.
        codec: quantises what is kept, so that the bytes of the budget hold more tokens.

    Attributes:
        codec: as given.
        repeated: tokens of the prompt that are being repeated (`kvbudget.reconstruction`).
    """

    def __init__(
        self,
        policy: Policy,
        geometry: Geometry,
        budget: int | str | None,
        prompt_tokens: int | None = None,
        codec: Codec | None = None,
    ) -> None:
        self.policy, self.geometry, self.budget = policy, geometry, budget
        self.codec = codec
        self._given = prompt_tokens
        self.reset()

    def reset(self) -> None:
        """Forget the prompt."""
        self.prompt_tokens = self._given
        self._budgets: list[list[int]] | None = None
        self.repeated: slice | None = None

    def begin(self, new: int) -> None:
        """Note a forward pass over `new` tokens: the first is the prompt if no length was given."""
        if self.prompt_tokens is None:
            self.prompt_tokens = new

    @contextmanager
    def repeating(self, tokens: slice) -> Iterator[None]:
        """While some tokens of the prompt are repeated."""
        self.repeated = tokens
        try:
            yield
        finally:
            self.repeated = None

    def restore(self, prompt_tokens: int | None) -> None:
        """Come back to a prompt of another length, for which the policy plans anew."""
        if prompt_tokens != self.prompt_tokens:
            self.prompt_tokens, self._budgets = prompt_tokens, None
            self.budgets()

    def tokens(self) -> int | None:
        """The budget in mean tokens per KV head; None without a bound or before the prompt."""
        if self.prompt_tokens is None:
            return None
        return budget_in_tokens(self.budget, self.prompt_tokens)

    def budgets(self) -> list[list[int]]:
        """Budgets in tokens of the KV heads of each full-attention layer."""
        if self._budgets is None:
            layers, kv_heads = len(self.geometry.layers), self.geometry.kv_heads
            tokens = self.tokens()
            if tokens is None:
                self._budgets = [[UNBOUNDED] * kv_heads] * layers
            else:
                kept = self.codec.slots(tokens) if self.codec else tokens
                self._budgets = self.policy.budgets(self.geometry, kept, self.prompt_tokens)
        return self._budgets

    def target_shift(self, seen: int) -> int:
        """How far the next token's position moves after `seen` tokens, so that the first target
        token is at phi (Group Position Encoding)."""
        phi = self.policy.phi
        return 0 if phi is None or seen < self.prompt_tokens else phi - self.prompt_tokens
