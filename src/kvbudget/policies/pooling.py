"""Heads that pool their budgets: this prompt's scores say who gets how much (AdaKV)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kvbudget.errors import UserError
from kvbudget.policies.allocate import round_to_sum


def pooled(
    scores: Sequence[Tensor],
    budgets: Sequence[int],
    groups: Sequence[Sequence[int]],
    safeguard: float,
) -> list[int]:
    """Budgets of a layer's heads by the best scores of each group (Feng et al., 2024).

    Args:
        scores: `(1, tokens)` of each KV head.
        budgets: of each KV head before.
        groups: KV heads that pool their budgets.
        safeguard: share of its budget that each head keeps whatever its scores.

    Raises:
        UserError: for a batch, whose sequences would need budgets of their own.
    """
    if safeguard == 1:
        return list(budgets)
    if scores[0].shape[0] > 1:
        raise UserError(
            "safeguard below 1 gives each sequence budgets of its own, which a batch cannot "
            "share; use batches of one, or safeguard: 1"
        )
    given = np.array(budgets)
    for group in map(list, groups):
        pool = int(given[group].sum())
        ranked = [scores[head][0].cpu().sort(descending=True, stable=True).values for head in group]
        for head, own in zip(group, ranked, strict=True):
            own[: int(safeguard * budgets[head] + 1e-9)] = float("inf")
        owners = torch.cat([torch.full(own.shape, i) for i, own in enumerate(ranked)])
        best = torch.cat(ranked).sort(descending=True, stable=True).indices[:pool]
        counts = np.bincount(owners[best].numpy(), minlength=len(group))
        # Where the group keeps everything, what is left waits for the tokens to come.
        left = pool - len(best)
        given[group] = counts + round_to_sum(left * given[group] / pool, left)
    return given.tolist()
