"""Attention of one decode step over the slots of a layer, whose heads hold unequally many tokens.

`attend_slots` is one definition with several backends: a kernel where there is one, or a dense call
for each segment of equally long heads, anywhere.
"""

import torch
from torch import Tensor

from kvbudget.cache.attention import attend_one, attention_weights
from kvbudget.cache.kernels import attend_for
from kvbudget.cache.slots import Slots


def attend_slots(
    query: Tensor,
    slots: Slots,
    *,
    scaling: float,
    softcap: float | None,
    padded: bool,
    received: bool = True,
) -> tuple[Tensor, list[Tensor | None]]:
    """Attention of a single query to every stored token of its KV head.

    `query` is `(batch, query_heads, 1, head_dim)`; `padded` says that some stored tokens may be
    padding; `received` whether it matters what tokens receive. Returns the output, shaped like
    `query`, and for each segment the attention that its tokens received, summed over the query
    heads of a KV head, `(batch, heads, tokens)` float32; None where it was not told, as the fast
    kernels do not.
    """
    kv_heads = sum(len(segment.heads) for segment in slots.segments)
    grouped = query.view(query.shape[0], kv_heads, -1, query.shape[-1])
    terms = {"scaling": scaling, "softcap": softcap, "padded": padded}
    if kernel := attend_for(slots):
        output, _, weights = kernel(grouped, slots, **terms, received=received)
        return output.reshape(query.shape), slots.by_segment(weights)
    output, weights = attend_densely(grouped, slots, **terms)
    return output.reshape(query.shape), weights


def attend_densely(
    grouped: Tensor, slots: Slots, *, scaling: float, softcap: float | None, padded: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """A dense call for each segment. `grouped` is `(batch, kv_heads, group, head_dim)`, and so is
    the output."""
    output = torch.empty_like(grouped)
    received = []
    for segment in slots.segments:
        held, heads = segment.stored(), list(segment.heads)
        valid = held.positions >= 0 if padded else None
        own = grouped[:, heads]
        if coding := segment.coding:
            logits = coding.products(own, held.keys, heads) * scaling
            weights = attention_weights(logits, softcap, valid)
            output[:, heads] = coding.codec.values.combine(weights, held.values).to(own.dtype)
            received.append(weights.sum(dim=2))
        else:
            terms = {"scaling": scaling, "softcap": softcap, "valid": valid}
            output[:, heads] = attend_one(own, held.keys, held.values, **terms)
            received.append(None)
    return output, received
