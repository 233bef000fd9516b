"""KeyDiff (Park et al., 2025), and AdaKV (Feng et al., 2024) over it."""

from torch import Tensor

from kvbudget.cache.policy import Candidates, Policy
from kvbudget.policies.pooling import pooled
from kvbudget.policies.rules import diversity


class KeyDiff(Policy):
    """Keeps the keys that are most unlike the mean key.

    Args:
        safeguard: 1 is KeyDiff; below, the heads of a layer pool their budgets, and each keeps
            that share of its own: AdaKV (0.2 as published).
    """

    def __init__(self, safeguard: float) -> None:
        self.safeguard = safeguard

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.protect(diversity(candidates), sinks=0)

    def redistribute(self, layer: int, scores: list[Tensor], budgets: list[int]) -> list[int]:
        return pooled(scores, budgets, [range(len(budgets))], self.safeguard)
