"""What a repetition of the context would attend to, predicted from what arrives.

KVzip (Kim et al., NeurIPS 2025) scores a token by the most attention that it gets while the model
repeats its context. A linear map of a layer's keys before rotation, its values and their norms
predicts the logarithm of that score for each KV head. All heads of the layer are the features of
each (`"group"`): together they hold nearly what the hidden state holds, of which each head alone
sees a part. As ablations, a head's score is predicted from its own key and value (`"own"`), the
same map with no weight for those of others, or from the hidden state itself (`"hidden"`), what the
layer's attention is given, which a cache sees by a hook alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

from kvbudget.cache.positions import Rotation
from kvbudget.cache.signals import Arrival, Signal


def features(key: Tensor, value: Tensor) -> Tensor:
    """What scores are predicted from.

    Args:
        key, value: of all KV heads of a layer, `(batch, kv_heads, tokens, head_dim)`, keys before
            rotation.

    Returns:
        `(batch, tokens, 2 * kv_heads * (head_dim + 1))` float32: keys, values, and their norms.
    """
    both = [key.float().transpose(1, 2), value.float().transpose(1, 2)]
    return torch.cat([*(x.flatten(2) for x in both), *(vector_norm(x, dim=-1) for x in both)], -1)


def rotated_features(key: Tensor, value: Tensor, angles: Tensor) -> Tensor:
    """The same of keys as they come, which costs a decode step less than to turn them back.

    Args:
        key: rotated to its position; else as `features`.
        value: as `features`.
        angles: as in `Arrival`.

    Returns:
        `(batch, tokens, kv_heads * (3 * head_dim + 2))` float32: of each head, its key times the
        cosine and times the sine; values, and norms.
    """
    both = key.float().unsqueeze(-2) * angles
    parts = [x.transpose(1, 2).flatten(2) for x in (both, value.float())]
    norms = [vector_norm(x.float(), dim=-1).transpose(1, 2) for x in (key, value)]
    return torch.cat([*parts, *norms], -1)


def owners(kv_heads: int, head_dim: int) -> Tensor:
    """Of which KV head each of the `features` is, `(2 * kv_heads * (head_dim + 1),)`."""
    heads = torch.arange(kv_heads)
    return torch.cat([heads.repeat_interleave(head_dim).repeat(2), heads.repeat(2)])


@dataclass(frozen=True)
class Scorer:
    """The linear map of a layer.

    Attributes:
        weights: `(features, kv_heads)`.
        bias: `(kv_heads,)`.
    """

    weights: Tensor
    bias: Tensor

    def __call__(self, found: Tensor) -> Tensor:
        """Predicted log-scores `(batch, kv_heads, tokens)` float32, from features
        `(batch, tokens, features)` float32."""
        return (found @ self.weights + self.bias).transpose(1, 2)

    def to(self, device: torch.device) -> "Scorer":
        """The same map on a device."""
        return Scorer(self.weights.to(device), self.bias.to(device))

    def of_rotated(self, rotation: Rotation) -> "Scorer":
        """The same map of `rotated_features`: rather than each key, its weights are turned, once.

        The product of weights with a key that is turned back is that of the weights times the
        cosine, plus the weights turned by a quarter times the sine, with the key.
        """
        heads = self.weights.shape[1]
        head_dim = len(self.weights) // (2 * heads) - 1
        of_keys = self.weights[: heads * head_dim].unflatten(0, (heads, head_dim)).mT
        both = torch.stack((of_keys, rotation.quarter(of_keys)), dim=1).mT.flatten(0, 2)
        return Scorer(torch.cat((both, self.weights[heads * head_dim :])), self.bias)


class Predicted(Signal):
    """The score that each token comes with, from keys and values."""

    name = "predicted"
    of_arrival = True
    unrotates = True

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self._ready = scorer, None

    def arrive(self, arrival: Arrival) -> Tensor:
        if self._ready is None:
            self._ready = self.ready(arrival)
        return self._ready(self.features(arrival))

    def ready(self, arrival: Arrival) -> Scorer:
        """The map of `features`, made once."""
        return self._scorer.to(arrival.key.device).of_rotated(arrival.rotation)

    def features(self, arrival: Arrival) -> Tensor:
        """What the scores follow from, `(batch, new, features)` float32."""
        return rotated_features(arrival.key, arrival.value, arrival.angles)


class FromHidden(Predicted):
    """The same from the hidden state, for a policy that sees what attention is given."""

    unrotates = False

    def ready(self, arrival: Arrival) -> Scorer:
        return self._scorer.to(arrival.key.device)

    def features(self, arrival: Arrival) -> Tensor:
        return arrival.given.float()
