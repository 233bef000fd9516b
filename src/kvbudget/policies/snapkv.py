"""SnapKV (Li et al., NeurIPS 2024), and AdaKV (Feng et al., 2024) over it."""

from torch import Tensor

from kvbudget.cache.policy import Candidates, Policy
from kvbudget.policies.pooling import pooled
from kvbudget.policies.received import OBSERVATION, Window
from kvbudget.policies.rules import window


class SnapKV(Policy):
    """Keeps the observation window and what its queries attended to before it, with neighbours.

    Args:
        safeguard: 1 is SnapKV; below, the heads of a layer pool their budgets, and each keeps that
            share of its own: AdaKV (0.2 as published).
        pooling: what a token takes of its neighbours, `"max"` as in the authors' LongBench runs, or
            `"mean"`, their code's default.
    """

    def __init__(self, safeguard: float, pooling: str) -> None:
        self.safeguard, self.pooling = safeguard, pooling

    def signals(self, layer: int) -> list[Window]:
        return [Window()]

    def score(self, candidates: Candidates) -> Tensor:
        recent = min(OBSERVATION, min(candidates.budgets) // 2)
        scores = window(candidates, recent, self.pooling)
        return candidates.protect(scores, recent=recent, sinks=0)

    def redistribute(self, layer: int, scores: list[Tensor], budgets: list[int]) -> list[int]:
        return pooled(scores, budgets, [range(len(budgets))], self.safeguard)
