"""Fitting what predicts a repetition's attention: ridge regression, a layer at a time.

The target is the logarithm of KVzip's score, cut off below: tokens that no budget would keep need
not be told apart, and a fit that tries to spends most of its error on them. The same sums give the
map of each set of features: a head's own are a part of the group's. Maps from hidden states have
sums of their own; KVzap's goes to KVzip+'s score, as published without a cut.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbudget.api import make_cache
from kvbudget.cache.budget import SINKS
from kvbudget.cache.cache import BudgetedCache, geometry_of
from kvbudget.cache.inputs import watched
from kvbudget.cache.layer import BudgetedLayer
from kvbudget.cache.positions import Rotation, rotations_of
from kvbudget.cache.slots import Tokens
from kvbudget.calibration.quality import Quality, judge, mean
from kvbudget.policies.kvzip import Repetition
from kvbudget.policies.predicted import Scorer, features, owners
from kvbudget.policies.repetition import repeat

#: Scores of KVzip below it count as it.
FLOOR = 1e-3
#: Likewise those of KVzip+, which would have no logarithm if they were zero.
LEAST = 1e-12
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
        given: what attention was given, `(1, tokens, hidden)`; None unless a map needs it.
        plus: like `score`, of KVzip+; None unless a map needs it.
    """

    key: Tensor
    value: Tensor
    score: Tensor
    given: Tensor | None = None
    plus: Tensor | None = None


@dataclass(frozen=True)
class Aim:
    """From what maps are fitted, and to what.

    Attributes:
        hidden: whether from what attention is given, or else from keys and values.
        plus: whether to KVzip+'s score, or else to KVzip's.
    """

    hidden: bool = False
    plus: bool = False

    def features(self, part: Read) -> Tensor:
        """Of a layer's part, `(1, tokens, features)` float32."""
        return part.given.float() if self.hidden else features(part.key, part.value)

    def score(self, part: Read) -> Tensor:
        """Of a layer's part, `(1, kv_heads, tokens)`."""
        return part.plus if self.plus else part.score

    def target(self, part: Read) -> Tensor:
        """The logarithm of the score, cut off below, `(tokens, kv_heads)`."""
        return self.score(part)[0].T.clamp(min=LEAST if self.plus else FLOOR).log()

    def counted(self, part: Read) -> Tensor:
        """Which tokens are fitted to, `(tokens,)` bool: not the sinks, which are kept anyway, nor,
        without a cut, what a chat begins with, which is not repeated."""
        counted = self.score(part)[0].amax(dim=0) >= (LEAST if self.plus else 0)
        counted[:SINKS] = False
        return counted


AIMS = {
    "group": Aim(),
    "own": Aim(),
    "hidden": Aim(hidden=True),
    "kvzap": Aim(hidden=True, plus=True),
}


@torch.no_grad()
def read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    rotations: Sequence[Rotation],
    hidden_maps: Sequence[str] = (),
) -> list[Read]:
    """Read a context with an attached model and repeat it, as KVzip does: each layer's part, with
    what some maps from hidden states need.

    `rotations` are those of the full-attention layers.
    """
    layers = geometry_of(model).layers
    with watched(model, layers if hidden_maps else ()) as seen:
        cache = _reading(model, ids, "kvzip")
        given = list(seen) or [None] * len(layers)
    repeat(model, tokenizer, cache, ids)
    plus: list[Tensor | None] = [None] * len(layers)
    if any(AIMS[name].plus for name in hidden_maps):
        again = _reading(model, ids, "kvzip-plus")
        repeat(model, tokenizer, again, ids)
        plus = [_held(layer).signals[Repetition.name] for layer in again.budgeted]
    parts = []
    for layer, rotation, *more in zip(cache.budgeted, rotations, given, plus, strict=True):
        held = _held(layer)
        key = rotation.move(held.keys.float(), -held.positions[..., None])
        parts.append(Read(key, held.values, held.signals[Repetition.name], *more))
    return parts


def _reading(model: PreTrainedModel, ids: list[int], method: str) -> BudgetedCache:
    """A cache that holds a context until it is repeated."""
    cache = make_cache(model, method, "100%", prompt_tokens=len(ids), bounded="context")
    model(torch.tensor([ids], device=model.device), past_key_values=cache, logits_to_keep=1)
    return cache


def _held(layer: BudgetedLayer) -> Tokens:
    (held,) = layer.store.slots.tokens()
    return held


class Moments:
    """Sums over tokens from which a layer's map follows.

    In float64, as keys may have means that are large beside their variance.
    """

    def __init__(self, aim: Aim) -> None:
        self.aim = aim
        self.count, self.sums, self.products = 0, 0.0, 0.0

    def add(self, part: Read) -> None:
        """Count a context's tokens."""
        both = torch.cat((self.aim.features(part)[0], self.aim.target(part)), dim=1)
        both = both[self.aim.counted(part)].double()
        self.count += len(both)
        self.sums = self.sums + both.sum(dim=0)
        self.products = self.products + both.T @ both

    def solve(self, kv_heads: int, alone: bool = False) -> Scorer:
        """The map that minimises squared errors and the penalty on weights (ridge regression).

        Args:
            kv_heads: of the layer.
            alone: whether each head sees its own key and value alone.
        """
        mean = self.sums / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        own, shared = covariance[:-kv_heads, :-kv_heads], covariance[:-kv_heads, -kv_heads:]
        spread = own.diagonal()
        penalised = own + (PENALTY * spread.clamp(min=TINY * spread.max())).diag()
        if alone:
            owner = owners(kv_heads, head_dim=len(own) // (2 * kv_heads) - 1).to(own.device)
            weights = torch.zeros_like(shared)
            for head in range(kv_heads):
                seen = (owner == head).nonzero()
                solved = torch.linalg.solve(penalised[seen, seen.T], shared[seen, [head]])
                weights[seen, [head]] = solved
        else:
            weights = torch.linalg.solve(penalised, shared)
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
    hidden_maps: Sequence[str] = (),
) -> dict[str, Fit]:
    """Fit the scorers of an attached model: what is found by the features, `"group"`, `"own"` and
    those of `hidden_maps`.

    Args:
        model: attached.
        tokenizer: the model's.
        contexts: token ids of the contexts that they are fitted on.
        held_out: of those by which the spread and the quality are measured.
        shares: ascending, from 0 to 1.
        hidden_maps: entries of `kvbudget.policies.registry.HIDDEN_MAPS`.
    """
    geometry = geometry_of(model)
    rotations = rotations_of(model, geometry.layers)
    moments = {
        name: [Moments(AIMS[name]) for _ in geometry.layers] for name in ("group", *hidden_maps)
    }
    for ids in contexts:
        parts = read(model, tokenizer, ids, rotations, hidden_maps)
        for own in moments.values():
            for each, part in zip(own, parts, strict=True):
                each.add(part)
    heads = geometry.kv_heads
    scorers = {name: [each.solve(heads) for each in own] for name, own in moments.items()}
    scorers["own"] = [each.solve(heads, alone=True) for each in moments["group"]]
    judged: dict[str, list[Quality]] = {name: [] for name in scorers}
    for ids in held_out:
        parts = read(model, tokenizer, ids, rotations, hidden_maps)
        for name, maps in scorers.items():
            aim = AIMS[name]
            pairs = zip(maps, parts, strict=True)
            found = torch.stack([own(aim.features(part))[0, :, SINKS:] for own, part in pairs])
            true = torch.stack([aim.score(part)[0, :, SINKS:] for part in parts])
            judged[name].append(judge(found.cpu(), true.cpu(), shares))
    return {name: Fit(scorers[name], mean(found)) for name, found in judged.items()}
