"""Scoring rules that Head-Aware chooses among.

Each rule maps candidates to scores relative to the head's mean: 1 is an average token. So heads of
unlike rules, levels and numbers of tokens can pool a budget and vote together.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, normalize

from kvbudget.policies.base import Candidates

POOLING = 7  # tokens; SnapKV's neighbourhood, which keeps the words around a hit together


def recency(candidates: Candidates) -> Tensor:
    """Age: the later the better (StreamingLLM's rule)."""
    return _relative((candidates.positions + 1).float(), candidates)


def attention(candidates: Candidates) -> Tensor:
    """All attention so far (H2O, Zhang et al., 2023)."""
    return _relative(candidates.sums["attention"], candidates)


def window(candidates: Candidates) -> Tensor:
    """Attention of the last queries, max-pooled over neighbours (SnapKV, Li et al.,
    2024)."""
    sums = candidates.sums["window"]
    order = candidates.positions.argsort(dim=-1)
    pooled = max_pool1d(
        sums.gather(-1, order).flatten(0, 1), POOLING, stride=1, padding=POOLING // 2
    ).view_as(sums)
    pooled = torch.empty_like(sums).scatter_(-1, order, pooled)
    return _relative(pooled, candidates)


def diversity(candidates: Candidates) -> Tensor:
    """How unlike the mean key a key is: 1 - cosine (KeyDiff, Park et al., 2025)."""
    keys = candidates.keys.float()
    lengths = keys.norm(dim=-1).clamp(min=1e-12)
    # Products with vectors, not normalized copies of all keys: this runs while decoding.
    weights = (candidates.positions >= 0) / lengths
    mean = normalize(weights.unsqueeze(-2) @ keys, dim=-1)
    cosines = (keys @ mean.transpose(-1, -2)).squeeze(-1) / lengths
    return _relative(1 - cosines, candidates)


def _relative(values: Tensor, candidates: Candidates) -> Tensor:
    """Values of 0 or more over their mean in each head, padding left out."""
    real = candidates.positions >= 0
    values = values.clamp(min=0) * real
    return values * real.sum(dim=-1, keepdim=True) / values.sum(dim=-1, keepdim=True)


RULES: dict[str, Callable[[Candidates], Tensor]] = {
    "recency": recency,
    "attention": attention,
    "window": window,
    "diversity": diversity,
}
SIGNALS = {"attention": "attention", "window": "window"}  # rule → the sum that it needs
