"""Fitting what predicts a repetition's attention: ridge regression, a layer at a time.

The target is the logarithm of KVzip's score, cut off below: tokens that no budget would keep need
not be told apart, and a fit that tries to spends most of its error on them. The same sums give the
map of each set of features: a head's own are a part of the group's.
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
from kvbudget.calibration.quality import Quality, judge, mean
from kvbudget.policies.kvzip import Repetition
from kvbudget.policies.predicted import Scorer, features, owners
from kvbudget.policies.repetition import repeat

#: Scores below it count as it.
FLOOR = 1e-3
#: Of the variance of each feature, added to it.
PENALTY = 1e-3
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

    def solve(self, groups: Sequence[Sequence[int]]) -> Scorer:
        """The map that minimises squared errors and the penalty on weights (ridge regression).

        Args:
            groups: KV heads, each in one group, that see the keys and values of their group.
        """
        kv_heads = sum(map(len, groups))
        mean = self.sums / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        own, shared = covariance[:-kv_heads, :-kv_heads], covariance[:-kv_heads, -kv_heads:]
        spread = own.diagonal()
        penalised = own + (PENALTY * spread.clamp(min=TINY * spread.max())).diag()
        owner = owners(kv_heads, head_dim=len(own) // (2 * kv_heads) - 1).to(own.device)
        weights = torch.zeros_like(shared)
        for group in groups:
            heads = torch.tensor(group, device=own.device)
            seen = torch.isin(owner, heads).nonzero()
            weights[seen, heads] = torch.linalg.solve(penalised[seen, seen.T], shared[seen, heads])
        bias = mean[-kv_heads:] - mean[:-kv_heads] @ weights
        return Scorer(weights.float(), bias.float())


@dataclass(frozen=True)
class Fit:
    """The maps from one set of features.

    Attributes:
        scorers: of all full-attention layers.
        quality: on contexts that were held out.
    """

    scorers: list[Scorer]
    quality: Quality


def fit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Iterable[list[int]],
    held_out: Sequence[list[int]],
    shares: Sequence[float],
) -> dict[str, Fit]:
    """Fit the scorers of an attached model: what is found by the features, `"group"` and `"own"`.

    Args:
        model: attached.
        tokenizer: the model's.
        contexts: token ids of the contexts that they are fitted on.
        held_out: of those by which the spread and the quality are measured.
        shares: ascending, from 0 to 1.
    """
    geometry = geometry_of(model)
    rotations = rotations_of(model, geometry.layers)
    moments = [Moments() for _ in geometry.layers]
    for ids in contexts:
        for each, part in zip(moments, read(model, tokenizer, ids, rotations), strict=True):
            each.add(part)
    heads = range(geometry.kv_heads)
    groups = {"group": [heads], "own": [[head] for head in heads]}
    scorers = {name: [each.solve(group) for each in moments] for name, group in groups.items()}
    judged: dict[str, list[Quality]] = {name: [] for name in groups}
    for ids in held_out:
        parts = read(model, tokenizer, ids, rotations)
        true = torch.stack([part.score[0, :, SINKS:] for part in parts]).cpu()
        for name, maps in scorers.items():
            pairs = zip(maps, parts, strict=True)
            found = [own(part.key, part.value)[0, :, SINKS:] for own, part in pairs]
            judged[name].append(judge(torch.stack(found).cpu(), true, shares))
    return {name: Fit(scorers[name], mean(judged[name])) for name in groups}
