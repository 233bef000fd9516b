"""What the layers of one cache share about the prompt."""

from collections.abc import Iterator
from contextlib import contextmanager

from kvbudget.cache.budget import UNBOUNDED, Geometry, budget_in_tokens
from kvbudget.cache.policy import Policy
from kvbudget.cache.quantize import Codec


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
        repeated: tokens of the prompt that are being repeated (`kvbudget.policies.repetition`).
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
