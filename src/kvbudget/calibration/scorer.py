"""Fitting what predicts a repetition's attention: ridge regression, a layer at a time.

The target is the logarithm of KVzip's score, cut off below: tokens that no budget would keep need
not be told apart, and a fit that tries to spends most of its error on them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbudget.api import make_cache
from kvbudget.cache.budget import SINKS
from kvbudget.cache.cache import geometry_of
from kvbudget.cache.positions import Rotation, rotations_of
from kvbudget.policies.kvzip import Repetition
from kvbudget.policies.predicted import Scorer, features
from kvbudget.policies.repetition import repeat

#: Scores below it count as it.
FLOOR = 1e-3
#: Of the variance of each feature, added to it.
PENALTY = 1e-3
#: Shares of tokens at which the quality of a fit is told.
TOLD = (0.1, 0.2, 0.4)
#: Of the largest variance: that of a feature which is the same for all tokens counts as so much.
TINY = 1e-9


@dataclass(frozen=True)
class Read:
    """A layer's part of a context that was read and repeated.

    Attributes:
        key: before rotation, `(1, kv_heads, tokens, head_dim)`.
        value: shaped like it.
        score: the most attention that each token got while the context was repeated,
            `(1, kv_heads, tokens)`.
    """

    key: Tensor
    value: Tensor
    score: Tensor


@torch.no_grad()
def read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    rotations: Sequence[Rotation],
) -> list[Read]:
    """Read a context with an attached model and repeat it, as KVzip does: each layer's part.

    `rotations` are those of the full-attention layers.
    """
    cache = make_cache(model, "kvzip", "100%", prompt_tokens=len(ids), bounded="context")
    model(torch.tensor([ids], device=model.device), past_key_values=cache, logits_to_keep=1)
    repeat(model, tokenizer, cache, ids)
    parts = []
    for layer, rotation in zip(cache.budgeted, rotations, strict=True):
        (held,) = layer.store.slots.tokens()
        key = rotation.move(held.keys.float(), -held.positions[..., None])
        parts.append(Read(key, held.values, held.signals[Repetition.name]))
    return parts


class Moments:
    """Sums over tokens from which a layer's map follows.

    In float64, as keys may have means that are large beside their variance.
    """

    def __init__(self) -> None:
        self.count, self.sums, self.products = 0, 0.0, 0.0

    def add(self, part: Read) -> None:
        """Count a context's tokens, without the sinks, which are kept anyway."""
        found = features(part.key, part.value)[0, SINKS:]
        target = part.score[0, :, SINKS:].T.clamp(min=FLOOR).log()
        both = torch.cat((found, target), dim=1).double()
        self.count += len(both)
        self.sums = self.sums + both.sum(dim=0)
        self.products = self.products + both.T @ both

    def solve(self, kv_heads: int) -> Scorer:
        """The map that minimises squared errors and the penalty on weights (ridge regression)."""
        mean = self.sums / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        own, shared = covariance[:-kv_heads, :-kv_heads], covariance[:-kv_heads, -kv_heads:]
        spread = own.diagonal()
        penalty = PENALTY * spread.clamp(min=TINY * spread.max())
        weights = torch.linalg.solve(own + penalty.diag(), shared)
        bias = mean[-kv_heads:] - mean[:-kv_heads] @ weights
        return Scorer(weights.float(), bias.float())


@dataclass(frozen=True)
class Fit:
    """What is fitted to a model, and how well.

    Attributes:
        scorers: the maps of all full-attention layers.
        spread: what each head keeps of typical contexts if all heads of all layers together keep
            a share, `(layers, kv_heads, shares)`.
        kept: by share of tokens, the part of all scores that the predicted best tokens have, over
            what the truly best would have; of contexts that were held out.
    """

    scorers: list[Scorer]
    spread: Tensor
    kept: dict[float, float]


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Iterable[list[int]],
    held_out: Sequence[list[int]],
    shares: Sequence[float],
) -> Fit:
    """Fit the scorer of an attached model.

    Args:
        model: attached.
        tokenizer: the model's.
        contexts: token ids of the contexts that it is fitted on.
        held_out: of those by which the spread and the quality are measured.
        shares: ascending, from 0 to 1.
    """
    rotations = rotations_of(model, geometry_of(model).layers)
    moments: list[Moments] = []
    for ids in contexts:
        parts = read(model, tokenizer, ids, rotations)
        moments = moments or [Moments() for _ in parts]
        for each, part in zip(moments, parts, strict=True):
            each.add(part)
    scorers = [each.solve(parts[0].key.shape[1]) for each in moments]
    spreads, kept = [], []
    for ids in held_out:
        parts = read(model, tokenizer, ids, rotations)
        true = torch.stack([part.score[0, :, SINKS:] for part in parts])
        pairs = zip(scorers, parts, strict=True)
        predicted = torch.stack([scorer(own.key, own.value)[0, :, SINKS:] for scorer, own in pairs])
        spreads.append(spread(predicted, shares))
        kept.append([_kept(predicted, true, share) for share in TOLD])
    means = torch.tensor(kept).mean(dim=0).tolist()
    return Fit(scorers, torch.stack(spreads).mean(dim=0), dict(zip(TOLD, means, strict=True)))


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
