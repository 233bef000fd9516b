"""PyramidKV (Cai et al., 2024, arXiv 2406.02069): SnapKV with budgets that fall over the layers."""

import numpy as np
from torch import Tensor

from kvbudget.cache.budget import Geometry
from kvbudget.cache.policy import Candidates, Policy
from kvbudget.policies.allocate import round_to_sum
from kvbudget.policies.received import OBSERVATION, Window
from kvbudget.policies.rules import window


class PyramidKV(Policy):
    """Keeps the observation window, and what its queries attended to: much in the first layers,
    little in the last, as attention narrows on the way up.

    Args:
        beta: beside the window, the last layer gets the mean over `beta`, the first as much more
            than the mean as the last gets less, and those between a linear share.
        pooling: as in SnapKV.
    """

    def __init__(self, beta: int, pooling: str) -> None:
        self.beta, self.pooling = beta, pooling

    def budgets(self, geometry: Geometry, budget: int, prompt_tokens: int) -> list[list[int]]:
        """Shares as in `pyramidkv_utils.py` of the authors (github.com/Zefan-Cai/KVCache-Factory),
        whose sum is exact here."""
        layers = len(geometry.layers)
        self._window = min(OBSERVATION, budget // 2)
        mean = budget - self._window
        most = max(mean, min(2 * mean - mean / self.beta, prompt_tokens - self._window))
        shares = np.linspace(most, 2 * mean - most, layers) if layers > 1 else np.array([mean])
        spent = round_to_sum(self._window + shares, budget * layers)
        return [[own] * geometry.kv_heads for own in spent.tolist()]

    def signals(self, layer: int) -> list[Window]:
        return [Window()]

    def score(self, candidates: Candidates) -> Tensor:
        scores = window(candidates, self._window, self.pooling)
        return candidates.protect(scores, recent=self._window, sinks=0)
