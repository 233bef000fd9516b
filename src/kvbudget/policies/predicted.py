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


class Predicted(Signal):
    """The score that each token comes with, from keys and values."""

    name = "predicted"
    of_arrival = True
    unrotates = True

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def arrive(self, arrival: Arrival) -> Tensor:
        self._scorer = self._scorer.to(arrival.key.device)  # once, not for each token
        return self._scorer(self.features(arrival))

    def features(self, arrival: Arrival) -> Tensor:
        """What the scores follow from, `(batch, new, features)` float32."""
        return features(arrival.unrotated_key, arrival.value)


class FromHidden(Predicted):
    """The same from the hidden state, for a policy that sees what attention is given."""

    unrotates = False

    def features(self, arrival: Arrival) -> Tensor:
        return arrival.given.float()
