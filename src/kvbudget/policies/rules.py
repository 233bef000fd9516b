"""Scoring rules that Head-Aware chooses among.

Each rule maps candidates to scores in [0, 1] that can be compared between heads, so that heads
can pool a budget and vote together.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, normalize

from kvbudget.policies.base import Candidates

POOLING = 7  # tokens; SnapKV's neighbourhood, which keeps the words around a hit together


def recency(candidates: Candidates) -> Tensor:
    """Age: the later the better (StreamingLLM's rule)."""
    return (candidates.positions + 1).float() / candidates.seen


def attention(candidates: Candidates) -> Tensor:
    """Share of all attention so far (H2O, Zhang et al., 2023)."""
    sums = candidates.sums["attention"]
    return sums / sums.sum(dim=-1, keepdim=True)


def window(candidates: Candidates) -> Tensor:
    """Share of the attention of the last queries, max-pooled over neighbours (SnapKV, Li et al.,
    2024)."""
    sums = candidates.sums["window"]
    order = candidates.positions.argsort(dim=-1)
    pooled = max_pool1d(
        sums.gather(-1, order).flatten(0, 1), POOLING, stride=1, padding=POOLING // 2
    ).view_as(sums)
    pooled = torch.empty_like(sums).scatter_(-1, order, pooled)
    return pooled / pooled.sum(dim=-1, keepdim=True)


def diversity(candidates: Candidates) -> Tensor:
    """How unlike the mean key a key is: (1 - cosine) / 2 (KeyDiff, Park et al., 2025)."""
    keys = normalize(candidates.keys.float(), dim=-1)
    real = (candidates.positions >= 0).unsqueeze(-1)
    mean = normalize((keys * real).sum(dim=-2, keepdim=True), dim=-1)
    return (1 - (keys * mean).sum(dim=-1)) / 2


RULES: dict[str, Callable[[Candidates], Tensor]] = {
    "recency": recency,
    "attention": attention,
    "window": window,
    "diversity": diversity,
}
SIGNALS = {"attention": "attention", "window": "window"}  # rule → the sum that it needs
