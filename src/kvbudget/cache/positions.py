"""Rotary positions: moving a rotated vector to another position, and the models' frequencies.

A rotary embedding (Su et al., 2021) turns a vector by an angle proportional to its position, so
a rotation by `delta` moves a vector that is already rotated from position `p` to `p + delta`.
"""

import torch
from torch import Tensor

from kvbudget.errors import UserError


def rotate(x: Tensor, delta: int, inverse_frequencies: Tensor) -> Tensor:
    """Move `x`, rotated for position p, to position `p + delta`.

    `x` is `(..., head_dim)` in the half-split layout of Llama, Qwen, Gemma, Mistral and Phi-3;
    `inverse_frequencies` is `(rotary_dim / 2,)`, dimensions beyond `rotary_dim` stay as they are.
    """
    angle = delta * inverse_frequencies.to(device=x.device, dtype=torch.float64)
    cos, sin = angle.cos().float(), angle.sin().float()
    half = inverse_frequencies.shape[0]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    return torch.cat((turned, x[..., 2 * half :]), dim=-1)


def inverse_frequencies(model: torch.nn.Module) -> Tensor:
    """The rotary inverse frequencies of a model's full-attention layers, `(rotary_dim / 2,)`.

    Raises `UserError` where keys cannot be moved: no rotary embedding, or one whose frequencies
    depend on the sequence length.
    """
    rotary = getattr(model.base_model, "rotary_emb", None)
    if rotary is None:
        raise UserError(
            f"{type(model).__name__} has no rotary embedding that positions could be moved with; "
            "use positions: absolute"
        )
    kind = rotary.rope_type
    kind = kind.get("full_attention", "default") if isinstance(kind, dict) else kind
    if kind in ("dynamic", "longrope"):
        raise UserError(
            f"the rotary embedding of {type(model).__name__} ({kind}) changes with the length, so "
            "keys cannot be moved; use positions: absolute"
        )
    name = "full_attention_inv_freq" if hasattr(rotary, "full_attention_inv_freq") else "inv_freq"
    return getattr(rotary, name)
