"""H2O (Zhang et al., NeurIPS 2023): heavy hitters and recent tokens."""

from torch import Tensor

from kvbudget.cache.policy import Candidates, Policy
from kvbudget.policies.received import Attention


class H2O(Policy):
    """Keeps the B/2 tokens that received most attention so far and the most recent B/2."""

    def signals(self, layer: int) -> list[Attention]:
        return [Attention()]

    def score(self, candidates: Candidates) -> Tensor:
        recent = candidates.budgets[0] // 2  # all heads have the same budget
        return candidates.protect(candidates.signals[Attention.name], recent=recent, sinks=0)
