"""Scoring rules that Head-Aware chooses among.

Each rule maps candidates to scores of 0 or more, `(batch, heads, tokens)` float32, which can be
compared over heads.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import avg_pool1d, max_pool1d, normalize

from kvbudget.cache.policy import Candidates
from kvbudget.cache.signals import Signal
from kvbudget.policies.received import Attention, Window

POOLING = 7  # tokens; SnapKV's neighbourhood, which keeps the words around a hit together


def recency(candidates: Candidates) -> Tensor:
    """Age: the later the better (StreamingLLM's rule)."""
    return (candidates.positions + 1).float()


def attention(candidates: Candidates) -> Tensor:
    """All attention so far (H2O, Zhang et al., 2023)."""
    return candidates.signals[Attention.name]


def window(candidates: Candidates, recent: int = 0, pooling: str = "max") -> Tensor:
    """Attention of the last queries, pooled over neighbours (SnapKV, Li et al., 2024).

    Args:
        candidates: with the signal `Window`.
        recent: tokens at the end that are kept anyway and lend nothing to their neighbours.
        pooling: `"max"` or `"mean"` of a token and those around it, none being 0.
    """
    sums = candidates.signals[Window.name]
    sums = sums.masked_fill(candidates.positions >= candidates.seen - recent, 0)
    order = candidates.positions.argsort(dim=-1)
    pool = max_pool1d if pooling == "max" else avg_pool1d
    pooled = pool(
        sums.gather(-1, order).flatten(0, 1), POOLING, stride=1, padding=POOLING // 2
    ).view_as(sums)
    return torch.empty_like(sums).scatter_(-1, order, pooled)


def diversity(candidates: Candidates) -> Tensor:
    """How unlike the mean key a key is: 1 - cosine (KeyDiff, Park et al., 2025)."""
    keys = candidates.keys.float()
    lengths = vector_norm(keys, dim=-1).clamp(min=1e-12)
    # Products with vectors, not normalized copies of all keys: this runs while decoding.
    weights = (candidates.positions >= 0) / lengths
    mean = normalize(weights.unsqueeze(-2) @ keys, dim=-1)
    return 1 - (keys @ mean.transpose(-1, -2)).squeeze(-1) / lengths


RULES: dict[str, Callable[[Candidates], Tensor]] = {
    "recency": recency,
    "attention": attention,
    "window": window,
    "diversity": diversity,
}
#: The signal that a rule needs, of those that need one.
SIGNALS: dict[str, type[Signal]] = {"attention": Attention, "window": Window}
