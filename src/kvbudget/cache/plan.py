"""What the layers of one cache share about the prompt."""

from kvbudget.cache.budget import UNBOUNDED, Geometry, budget_in_tokens
from kvbudget.cache.policy import Policy
from kvbudget.cache.quantize import Codec
from kvbudget.errors import UserError


class Plan:
    """What the layers of one cache share about the prompt: its length, and so the budgets.

    Args:
        policy: spreads the budget over the heads.
        geometry: the heads that the budget is spread over.
        budget: tokens, a share of the prompt, or None for no bound.
        prompt_tokens: length of the prompt; by default the first forward pass is the prompt.
        codec: quantises what is kept, so that the bytes of the budget hold more tokens.
        bounded: an entry of `kvbudget.cache.budget.BOUNDED`.

    Attributes:
        prompt_tokens: as given, or once the prompt has come; None before.
    """

    def __init__(
        self,
        policy: Policy,
        geometry: Geometry,
        budget: int | str | None,
        prompt_tokens: int | None = None,
        codec: Codec | None = None,
        bounded: str = "always",
    ) -> None:
        self.policy, self.geometry, self.budget = policy, geometry, budget
        self.codec, self.bounded = codec, bounded
        policy.bounded = bounded
        self._given = prompt_tokens
        self.reset()

    def reset(self) -> None:
        """Forget the prompt."""
        self.prompt_tokens = self._given
        self._budgets: list[list[int]] | None = None

    @property
    def known(self) -> bool:
        """Whether the budget is known once reading has begun: not so a share of a context that is
        held, as it may come in pieces."""
        share = isinstance(self.budget, str) and self._given is None
        return not (share and self.policy.holds_context)

    def check(self, new: int, seen: int) -> None:
        """Before a forward pass over `new` tokens after `seen`: see that the prompt's length is
        known where something was taken of it.

        Raises:
            UserError: more than one token comes, and the prompt may not have been over; or the
                prompt ends among them, and what follows it is no part of the budget.
        """
        share = isinstance(self.budget, str)
        taken = f"budget {self.budget!r}" if share else f"phi: {self.policy.phi}"
        counts = (share or self.policy.phi is not None) and not self.policy.holds_context
        if counts and self._given is None and seen > 0 and new > 1:
            raise UserError(
                f"{taken} took the first {self.prompt_tokens} tokens for the whole prompt, and "
                f"{new} more come at once; call make_cache with prompt_tokens= the length of the "
                f"prompt ({self.prompt_tokens} if these come after it)"
            )

        prompt = self.prompt_tokens
        if self.bounded == "context" and prompt is not None and seen < prompt < seen + new:
            raise UserError(
                f"a context of {prompt} tokens ends among the {new} that come after {seen}, and "
                "what follows it stands on top of the budget; read them apart, or use bounded: "
                "always"
            )

    def begin(self, new: int) -> None:
        """Note a forward pass over `new` tokens: the first is the prompt if no length was given."""
        if self.prompt_tokens is None:
            self.prompt_tokens = new

    def set_prompt(self, prompt_tokens: int | None) -> None:
        """A prompt of another length than was planned for: the policy plans anew."""
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
                kept = self.codec.slots(tokens, self._numbers()) if self.codec else tokens
                self._budgets = self.policy.budgets(self.geometry, kept, self.prompt_tokens)
        return self._budgets

    def _numbers(self) -> int:
        """Numbers of signals that a token is kept with."""
        return 0 if self.bounded == "context" else len(self.policy.signals(0))

    def ended(self, seen: int) -> bool:
        """Whether `seen` tokens are all that the budget is for, so that nothing is scored again."""
        return self.bounded == "context" and seen >= (self.prompt_tokens or seen + 1)

    def target_shift(self) -> int:
        """How far positions after the prompt move, so that the first target token is at phi (Group
        Position Encoding)."""
        phi = self.policy.phi
        return 0 if phi is None else phi - self.prompt_tokens
