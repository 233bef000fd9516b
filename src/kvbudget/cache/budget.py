"""Budgets: how they are given, and what they are in tokens and bytes. Imports no torch."""

from dataclasses import dataclass

from kvbudget.errors import UserError

SINKS = 4  # attention sinks (Xiao et al., 2024) that every bounded method keeps
MINIMUM = 2 * SINKS  # tokens: a cache must hold the sinks and as many recent tokens to work
UNBOUNDED = 2**62  # tokens; the budget of a head that keeps everything
#: What a budget bounds: all that a cache holds, whatever comes; or the context alone, once it has
#: been read, and what follows it stands on top.
BOUNDED = ("always", "context")


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
