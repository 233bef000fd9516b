"""How well predicted scores stand in for those of a repetition, on contexts that were held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

#: Shares of tokens at which it is told what the predicted best hold.
TOLD = (0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Quality:
    """What is found on contexts.

    Attributes:
        spread: what each head keeps if all heads of all layers together keep a share by predicted
            scores, `(layers, kv_heads, shares)`.
        kept: at each share of `TOLD`, the part of all scores that the predicted best tokens have,
            over what the truly best would have, `(shares,)`.
        ranks: Spearman's correlation of predicted and true scores over the tokens of each head,
            `(layers, kv_heads)`.
    """

    spread: Tensor
    kept: Tensor
    ranks: Tensor


def judge(predicted: Tensor, true: Tensor, shares: Sequence[float]) -> Quality:
    """The quality of predicted scores on one context, both `(layers, kv_heads, tokens)`."""
    kept = torch.tensor([_kept(predicted, true, share) for share in TOLD])
    return Quality(spread(predicted, shares), kept, _ranks(predicted, true))


def mean(found: Sequence[Quality]) -> Quality:
    """The mean over contexts."""
    parts = zip(*((each.spread, each.kept, each.ranks) for each in found), strict=True)
    return Quality(*(torch.stack(part).mean(dim=0) for part in parts))


def spread(scores: Tensor, shares: Sequence[float]) -> Tensor:
    """What each head keeps where the best scores of all, `(layers, kv_heads, tokens)`, are kept:
    `(layers, kv_heads, shares)`, in shares of its tokens."""
    order = scores.flatten().sort(descending=True, stable=True).indices
    owners, tokens = order // scores.shape[-1], scores.shape[-1]
    heads = scores.shape[0] * scores.shape[1]
    counts = [owners[: round(share * len(order))].bincount(minlength=heads) for share in shares]
    return torch.stack(counts, dim=-1).view(*scores.shape[:2], -1) / tokens


def _kept(predicted: Tensor, true: Tensor, share: float) -> float:
    """The sum of the true scores of the predicted best, over that of the truly best."""
    count = round(share * true.numel())
    best = true.flatten()[predicted.flatten().topk(count).indices]
    return float(best.sum() / true.flatten().topk(count).values.sum())


def _ranks(predicted: Tensor, true: Tensor) -> Tensor:
    """Spearman's correlation over the last dimension; 0 where either is the same throughout."""
    places = [rankdata(each.numpy(), axis=-1) for each in (predicted, true)]
    one, other = (each - each.mean(axis=-1, keepdims=True) for each in places)
    scale = np.sqrt((one**2).sum(axis=-1) * (other**2).sum(axis=-1))
    return torch.tensor((one * other).sum(axis=-1) / np.maximum(scale, 1e-12), dtype=torch.float32)
