"""Attention of one decode step over the slots of a layer, whose heads hold unequally many tokens.

`attend_slots` is one definition with two backends: a dense call for each segment of equally long
heads, anywhere, and one variable-length kernel over the flat storage on CUDA.
"""

from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from kvbudget.cache.attention import attend_one, attention_weights
from kvbudget.cache.slots import Slots


def attend_slots(
    query: Tensor, slots: Slots, *, scaling: float, softcap: float | None, padded: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """Attention of a single query to every stored token of its KV head.

    `query` is `(batch, query_heads, 1, head_dim)`; `padded` says that some stored tokens may be
    padding. Returns the output, shaped like `query`, and for each segment the attention that its
    tokens received, summed over the query heads of a KV head, `(batch, heads, tokens)` float32;
    None where the fast kernels, which do not tell it, were used.
    """
    kv_heads = sum(len(segment.heads) for segment in slots.segments)
    grouped = query.view(query.shape[0], kv_heads, -1, query.shape[-1])
    if slots.order is not None:
        grouped = grouped[:, slots.order]
    ragged = len(slots.segments) > 1 and slots.coding is None
    plain = softcap is None and not padded
    if ragged and plain and has_varlen_kernel(query.device, query.dtype, query.shape[-1]):
        output, received = _varlen(grouped, slots, scaling), [None] * len(slots.segments)
    else:
        output, received = _dense(grouped, slots, scaling, softcap, padded)
    if slots.order is not None:
        output = output[:, slots.order.argsort()]
    return output.reshape(query.shape), received


def _dense(
    grouped: Tensor, slots: Slots, scaling: float, softcap: float | None, padded: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """A dense call for each segment. `grouped` is `(batch, kv_heads, group, head_dim)`."""
    outputs, received, start = [], [], 0
    for segment in slots.segments:
        held = segment.stored()
        stop = start + len(segment.heads)
        valid = held.positions >= 0 if padded else None
        own = grouped[:, start:stop]
        if coding := segment.coding:
            logits = coding.products(own, held.keys, list(segment.heads)) * scaling
            weights = attention_weights(logits, softcap, valid)
            outputs.append(coding.codec.values.combine(weights, held.values).to(own.dtype))
            received.append(weights.sum(dim=2))
        else:
            terms = {"scaling": scaling, "softcap": softcap, "valid": valid}
            outputs.append(attend_one(own, held.keys, held.values, **terms))
            received.append(None)
        start = stop
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0], received


def has_varlen_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether FlashAttention-2, the kernel of variable lengths, runs here: in half precision, for
    heads of up to 256 dimensions, on GPUs from Ampere on (github.com/Dao-AILab/flash-attention)."""
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and head_dim <= 256
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def _varlen(grouped: Tensor, slots: Slots, scaling: float) -> Tensor:
    """One kernel for all heads: to it, every KV head of every sequence is a sequence."""
    batch, kv_heads, group, head_dim = grouped.shape
    capacities = [segment.capacity for segment in slots.segments for _ in segment.heads]
    lengths = [segment.length for segment in slots.segments for _ in segment.heads]
    ends = torch.tensor([0, *accumulate(capacities * batch)], dtype=torch.int32)
    output = varlen_attn(
        grouped.reshape(batch * kv_heads, group, head_dim),
        slots.keys.reshape(-1, 1, head_dim),
        slots.values.reshape(-1, 1, head_dim),
        torch.arange(batch * kv_heads + 1, dtype=torch.int32, device=grouped.device),
        ends.to(grouped.device, non_blocking=True),
        1,
        max(lengths),
        scale=scaling,
        enable_gqa=True,
        seqused_k=torch.tensor(lengths * batch, dtype=torch.int32, device=grouped.device),
    )
    return output.view(grouped.shape)
