"""Rotary positions: how a layer turns queries and keys, and moving them to other positions.

A rotary embedding (Su et al., 2021) turns pairs of dimensions by angles proportional to the
position, so a rotation by `delta` moves a vector that is already rotated from position `p` to
`p + delta`. Models differ in which dimensions pair up, how many turn, and in which layers: that is
found by running the model, layer by layer, never from its name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from kvbudget.cache.attending import AttendingLayer
from kvbudget.errors import UserError

NEAR = 5  # positions; enough to turn the quick pairs well round, and within any context
FARTHEST = 2**20  # beyond it the angles of float32, in which models compute them, are noise
#: Of a vector's length. Halves of bfloat16 cost 0.005, float32 angles far away 0.05; what is not
#: the rotation in question is off by 0.3 or more.
TOLERANCE = 0.1


@dataclass(frozen=True, eq=False)
class Rotation:
    """How one layer turns queries and keys.

    Attributes:
        frequencies: radians a position of each pair of dimensions, `(rotary_dim / 2,)`; none where
            a layer tells no positions (NoPE). Dimensions from `rotary_dim` on stay as they are.
        interleaved: neighbours pair up (GPT-J, Cohere, GLM); or else the two halves of the
            dimensions that turn (Llama, Qwen, Gemma).
    """

    frequencies: Tensor
    interleaved: bool = False

    def move(self, x: Tensor, delta: int | Tensor) -> Tensor:
        """Move `x`, `(..., head_dim)`, rotated for position p, to position `p + delta`.

        A tensor of distances, one for each vector, has 1 for its last dimension.
        """
        cos, sin = self.angles(delta, x).unbind(-2)
        return (x.float() * cos).addcmul_(self.quarter(x.float()), sin).to(x.dtype)

    def angles(self, delta: int | Tensor, like: Tensor) -> Tensor:
        """Cosine and sine of what numbers of vectors like `(..., head_dim)` turn by over a
        distance, or over each of `(..., 1)`: `(..., 2, head_dim)` float32."""
        angle = delta * self.frequencies.to(device=like.device, dtype=torch.float64)
        angle = torch.stack((angle, angle), self._pairs[1]).flatten(-2)
        angle = torch.nn.functional.pad(angle, (0, like.shape[-1] - angle.shape[-1]))
        return torch.stack((angle.cos(), angle.sin()), dim=-2).float()

    def quarter(self, x: Tensor) -> Tensor:
        """What the sine of the angle is multiplied by: `x`, `(..., head_dim)`, with each pair
        turned by a quarter, and 0 for what does not turn."""
        shape, axis = self._pairs
        turning = 2 * len(self.frequencies)
        first, second = x[..., :turning].unflatten(-1, shape).unbind(axis)
        turned = torch.stack((-second, first), axis).flatten(-2)
        return torch.nn.functional.pad(turned, (0, x.shape[-1] - turning))

    @property
    def _pairs(self) -> tuple[tuple[int, int], int]:
        """The shape of the pairs, and the axis along which two pair up."""
        pairs = len(self.frequencies)
        return ((pairs, 2), -1) if self.interleaved else ((2, pairs), -2)


def rotations_of(model: PreTrainedModel, layers: Sequence[int]) -> tuple[Rotation, ...]:
    """The rotations of some layers of an attached model, found by running it on single tokens.

    A token alone attends to itself wherever it stands, so all that positions change in a layer is
    the rotation of its query and its key.

    Raises:
        UserError: keys cannot be moved: a layer tells positions by something else than a rotary
            embedding, or by one that depends on more than the distance.
    """
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is None or not _frequencies(model):
        raise _immovable(model, "has no rotary position embedding")
    if any(hasattr(module, "mrope_section") for module in model.modules()):
        raise _immovable(model, "numbers images along three axes")
    far = min(2 * limit, FARTHEST)
    last = _witness(model, layers, [far])
    # After the far one: an embedding that scales with the length goes back to short texts.
    first, near = _witness(model, layers, [0, NEAR]).chunk(2, dim=1)
    options = [Rotation(torch.empty(0))]
    for own in _frequencies(model):
        options += [Rotation(own), Rotation(own, interleaved=True)]
    found = []
    for layer, *vectors in zip(layers, first, near, last, strict=True):
        errors = [_errors(rotation, *vectors, far) for rotation in options]
        best = min(range(len(options)), key=lambda i: max(errors[i]))
        if max(errors[best]) > TOLERANCE:
            fits_near = any(near <= TOLERANCE for near, _ in errors)
            why = "that changes with the length" if fits_near else "of a kind that is not known"
            raise _immovable(model, f"has a position embedding {why} (layer {layer})")
        found.append(options[best])
    return tuple(found)


def _immovable(model: PreTrainedModel, why: str) -> UserError:
    return UserError(
        f"keys cannot be moved, for {type(model).__name__} {why}; use positions: absolute "
        "(streaming-llm), phi: auto (full) or another method"
    )


def _frequencies(model: PreTrainedModel) -> list[Tensor]:
    """Inverse frequencies of all rotary embeddings: layers may have one each, or be of kinds."""
    buffers = [own for name, own in model.named_buffers() if name.endswith("inv_freq")]
    return list({tuple(own.tolist()): own.clone() for own in buffers}.values())


def _errors(
    rotation: Rotation, first: Tensor, near: Tensor, last: Tensor, far: int
) -> tuple[float, float]:
    """How far vectors that are moved by a rotation are from those of the model, near and far."""
    return _error(rotation.move(first, NEAR), near), _error(rotation.move(first, far), last)


def _error(moved: Tensor, expected: Tensor) -> float:
    """The largest distance between vectors, over the length of the second."""
    distance = torch.linalg.vector_norm(moved.float() - expected.float(), dim=-1)
    return float((distance / torch.linalg.vector_norm(expected.float(), dim=-1)).max())


class _Witness(AttendingLayer):
    """Keeps the query and the key of a token that attends to itself alone."""

    vectors: Tensor

    def get_seq_length(self) -> int:
        return 0

    def attend(self, query: Tensor, scaling: float, softcap: float | None, mask: None) -> Tensor:
        """The values: what attention to a single token is."""
        key, value = self.take_pending()
        self.vectors = torch.cat((query, key), dim=1)
        return value.repeat_interleave(query.shape[1] // key.shape[1], dim=1)


@torch.no_grad()
def _witness(model: PreTrainedModel, layers: Sequence[int], positions: list[int]) -> Tensor:
    """Queries and keys of one token at positions, `(layers, positions, heads, 1, head_dim)`."""
    config = model.config.get_text_config(decoder=True)
    cache = Cache(layers=[_Witness() for _ in range(config.num_hidden_layers)])
    at = torch.tensor(positions, device=model.device)[:, None]
    token = torch.full_like(at, config.vocab_size // 2)
    model.base_model(token, position_ids=at, past_key_values=cache, use_cache=True)
    return torch.stack([cache.layers[layer].vectors for layer in layers])
