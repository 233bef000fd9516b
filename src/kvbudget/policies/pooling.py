"""Heads that pool their budgets: this prompt's scores say who gets how much (AdaKV)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kvbudget.policies.allocate import round_to_sum


def pooled(
    scores: Sequence[Tensor],
    budgets: Sequence[int],
    groups: Sequence[Sequence[int]],
    safeguard: float,
) -> list[int]:
    """Budgets of a layer's heads by the best scores of each group (Feng et al., 2024).

    Args:
        scores: `(batch, tokens)` of each KV head. The sequences of a batch share budgets: their
            best scores count with their mean, and so do their second best, and so on.
        budgets: of each KV head before.
        groups: KV heads that pool their budgets.
        safeguard: share of its budget that each head keeps whatever its scores.
    """
    if safeguard == 1:
        return list(budgets)
    given = np.array(budgets)
    for group in map(list, groups):
        pool = int(given[group].sum())
        ranked = [scores[head].cpu().sort(descending=True).values.mean(dim=0) for head in group]
        for head, own in zip(group, ranked, strict=True):
            own[: int(safeguard * budgets[head] + 1e-9)] = float("inf")
        owners = torch.cat([torch.full(own.shape, i) for i, own in enumerate(ranked)])
        best = torch.cat(ranked).sort(descending=True, stable=True).indices[:pool]
        counts = np.bincount(owners[best].numpy(), minlength=len(group))
        # Where the group keeps everything, what is left waits for the tokens to come.
        left = pool - len(best)
        given[group] = counts + round_to_sum(left * given[group] / pool, left)
    return given.tolist()
