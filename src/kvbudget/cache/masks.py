"""Masks: those that transformers asks for, and those that a caller brings along.

A plain causal mask is not made: the kernels know causality, and `(queries, tokens)` of a whole
prompt would be O(tokens²). Whatever says more is a 4-D mask as transformers makes it: packed
sequences, images whose tokens see each other, chunks, windows, a caller's own.
"""

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sdpa_mask

from kvbudget.errors import UserError

#: What is added to a logit that is to vanish, or less: its exponential is 0 in every dtype.
HIDDEN = -1e4


def mask_for_attention(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function=causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs,
) -> Tensor | None:
    """Mask for transformers' mask interface.

    Where a layer sees all that came before, the 2-D padding mask `(batch, tokens)`, or None where
    nothing is padded. The stock 4-D mask otherwise: for windows and chunks (`local_size`), for any
    other `mask_function`, for caches of a fixed length, whose free slots must be hidden too, and
    for models that ask for it (`allow_is_causal_skip`); one that hides nothing has one element.
    """
    plain = mask_function is causal_mask_function and local_size is None and allow_is_causal_skip
    whole = kv_length == q_offset + q_length and kv_offset == 0
    if plain and whole and attention_mask is None:
        return None
    if plain and whole and attention_mask.shape[-1] == kv_length:
        return None if bool(attention_mask.all()) else attention_mask.bool()
    mask = sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=False,  # without a mask, our attention is causal over all tokens
        **kwargs,
    )
    return everything(kwargs.get("device")) if mask is None else mask


def everything(device: torch.device | str | None) -> Tensor:
    """A 4-D mask that hides nothing, to be spread over all queries and tokens."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def visible(mask: Tensor, new: int, tokens: int) -> Tensor:
    """Which tokens each new token sees, `(batch, 1, new, tokens)` bool.

    `mask` is a 4-D mask as transformers takes it, True where a token is seen or 0 in place of a
    very negative number; its dimensions may be 1 to stand for all.

    Raises:
        UserError: it does not cover all tokens seen, kept or not; or it says more than who sees
            whom, or not the same of all heads; or there is a token that nobody sees, as padding.
    """
    if mask.dtype != torch.bool:
        hidden = mask <= HIDDEN
        if not mask.is_floating_point() or bool((mask.masked_fill(hidden, 0) != 0).any()):
            raise UserError(
                "a 4-D attention mask for our caches hides tokens or shows them; give True and "
                "False, or 0 and a very negative number"
            )
        mask = ~hidden
    if mask.shape[1] != 1 or mask.shape[2] not in (1, new) or mask.shape[3] not in (1, tokens):
        raise UserError(
            f"a 4-D attention mask for our caches is (batch, 1, {new}, {tokens}): all tokens seen, "
            f"whether kept or not, and the same for all heads; this one is {tuple(mask.shape)}"
        )
    mask = mask.expand(-1, -1, new, tokens)
    if not bool(mask[..., -new:].any(dim=-2).all()):
        raise UserError(
            "a 4-D attention mask hides a new token from all, itself too, which our caches would "
            "keep; give sequences of one length, without padding, or a 2-D mask"
        )
    return mask


def is_causal(mask: Tensor) -> bool:
    """Whether a mask, `(batch, 1, new, tokens)` bool, says no more than that the past is seen."""
    new, tokens = mask.shape[2:]
    past = torch.ones(new, tokens, dtype=torch.bool, device=mask.device).tril(tokens - new)
    return bool((mask == past).all())


def of_tokens(mask: Tensor, positions: Tensor) -> Tensor:
    """The columns of some tokens, `(batch, kv_heads or 1, new, kept)`.

    `mask` is `(batch, 1, new, tokens)`, `positions` of the kept tokens `(batch, kv_heads, kept)`.
    """
    if positions.shape[-1] == mask.shape[-1]:  # all are kept, which are stored in order
        return mask
    index = positions.long().unsqueeze(2).expand(-1, -1, mask.shape[2], -1)
    return mask.expand(*index.shape[:3], -1).gather(-1, index)
