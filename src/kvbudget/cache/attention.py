"""The attention function registered with transformers: where queries, keys and values meet.

Shapes: `query` is `(batch, query_heads, queries, head_dim)`; `key` and `value` are
`(batch, kv_heads, tokens, head_dim)`. Query head `h` reads KV head `h // group`. The last
`queries` tokens are the queries' own, so query `i` sees the tokens `j <= tokens - queries + i`.
Every kernel here works in blocks of queries: memory is O(tokens), never O(tokens²). Sliding-window
layers keep the masks that transformers makes for them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "kvbudget"
#: Queries a block. Larger blocks were slower on CPU, where they fall out of the L2 cache.
BLOCK = 128


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key,
    value,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention of one layer, with the signature that transformers' models call.

    A layer of our cache returns itself from `update` in place of keys and values, and then
    attends itself. Plain tensors (sliding-window layers, or no cache) take the stock path.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if hasattr(key, "attend"):
        output = key.attend(query, scaling, softcap, padding=attention_mask)
        return output.transpose(1, 2).contiguous(), None
    if attention_mask is None or attention_mask.dim() == 2:  # full attention, another cache or none
        valid = None
        if attention_mask is not None:
            valid = attention_mask[:, None, : key.shape[2]].expand(-1, key.shape[1], -1)
        output = attend(query, key, value, scaling=scaling, softcap=softcap, valid=valid)
        return output.transpose(1, 2).contiguous(), None
    if softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    blocks = zip(query.split(BLOCK, dim=2), attention_mask.split(BLOCK, dim=2), strict=True)
    outputs = [_softcapped(rows, key, value, scaling, softcap, mask) for rows, mask in blocks]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def mask_function(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    **kwargs,
) -> Tensor | None:
    """Mask for transformers' mask interface.

    Full-attention layers get the 2-D padding mask, or None where nothing is padded: causality is
    known to the kernels, and a `(queries, tokens)` mask of the whole prompt would be O(tokens²).
    Sliding-window layers (`local_size` is set) and caches of a fixed length, whose free slots must
    be masked too, get the stock SDPA mask.
    """
    if local_size is not None or kv_length != q_offset + q_length:
        kwargs |= {"attention_mask": attention_mask, "local_size": local_size}
        kwargs["allow_is_causal_skip"] = False  # our attention takes no mask for full attention
        return sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, **kwargs)
    if attention_mask is None or bool(attention_mask.all()):
        return None
    return attention_mask.bool()


def register() -> None:
    """Make `attn_implementation="kvbudget"` known to transformers. Harmless when repeated."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, mask_function)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Causal attention over `(cached tokens, the queries' own tokens)`.

    `valid` is `(batch, kv_heads, tokens)`, False where a token is padding; None if none is.
    Returns `(batch, query_heads, queries, head_dim)`.
    """
    queries, tokens = query.shape[2], key.shape[2]
    if softcap is None and valid is None and queries == tokens:
        return scaled_dot_product_attention(
            query, key, value, is_causal=queries > 1, scale=scaling, enable_gqa=True
        )
    outputs = []
    for rows, end, mask in _blocks(queries, tokens, valid, query.device):
        block = query[:, :, rows]
        if mask.shape[1] > 1:
            mask = mask.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        if softcap is None:
            outputs.append(
                scaled_dot_product_attention(
                    block, key[:, :, :end], value[:, :, :end], mask, scale=scaling, enable_gqa=True
                )
            )
        else:
            outputs.append(
                _softcapped(block, key[:, :, :end], value[:, :, :end], scaling, softcap, mask)
            )
    return torch.cat(outputs, dim=2)


def attend_one(
    grouped: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Attention of a single query to every cached token (one decode step).

    `grouped` is `(batch, kv_heads, group, head_dim)`: the query heads of a KV head are rows of one
    call, so that each key is read once. Returns the output in the same shape.
    """
    if softcap is None:
        mask = None if valid is None else valid.unsqueeze(2)
        return scaled_dot_product_attention(grouped, key, value, mask, scale=scaling)
    weights = attention_weights(_logits(grouped, key, scaling), softcap, valid)
    return (weights @ value.float()).to(value.dtype)


def attention_received(
    query: Tensor,
    key: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Attention of a single query that each cached token receives, summed over the query heads.

    `query` is `(batch, query_heads, 1, head_dim)`. Returns `(batch, kv_heads, tokens)` in float32.
    A pass of its own: the fast kernels do not tell their probabilities.
    """
    grouped = query.view(query.shape[0], key.shape[1], -1, query.shape[-1])
    return attention_weights(_logits(grouped, key, scaling), softcap, valid).sum(dim=2)


def _logits(grouped: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Scaled products of a single query with all keys, `(batch, kv_heads, group, tokens)`."""
    # In float32 for accuracy, and because half-precision products of few rows are slow on CPU.
    return (grouped.float() * scaling) @ key.float().mT


def attention_weights(logits: Tensor, softcap: float | None, valid: Tensor | None) -> Tensor:
    """Attention probabilities of a single query from its logits, float32
    `(batch, kv_heads, group, tokens)`; `valid` is `(batch, kv_heads, tokens)`."""
    logits = _capped(logits, softcap)
    if valid is not None:
        logits = logits.masked_fill(~valid.unsqueeze(2), float("-inf"))
    return logits.softmax(dim=-1)


def attention_sums(
    query: Tensor,
    key: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Attention that each token receives, summed over queries and the query heads of a KV head.

    Exact, in float32 and O(tokens) memory: the sum that H2O accumulates (Zhang et al., 2023).
    Returns `(batch, kv_heads, tokens)`.
    """
    batch, kv_heads, tokens, _ = key.shape
    sums = torch.zeros(batch, kv_heads, tokens, dtype=torch.float32, device=key.device)
    for rows, end, probabilities in attention_blocks(
        query, key, scaling=scaling, softcap=softcap, valid=valid
    ):
        if valid is not None:  # a padding query attends to something, and must not be counted
            own = valid[:, :, key.shape[2] - query.shape[2] :][:, :, rows]
            probabilities = probabilities * own[:, :, None, :, None]
        sums[:, :, :end] += probabilities.sum(dim=(2, 3))
    return sums


def attention_maxima(
    query: Tensor, key: Tensor, scaling: float, softcap: float | None = None
) -> Tensor:
    """The most that any query attends to each token, over the query heads of a KV head, too.

    In float32 and O(tokens) memory, without padding. Returns `(batch, kv_heads, tokens)`.
    """
    most = torch.zeros(key.shape[:3], dtype=torch.float32, device=key.device)
    for _, end, weights in attention_blocks(query, key, scaling=scaling, softcap=softcap):
        seen = most[:, :, :end]
        torch.maximum(seen, weights.amax(dim=(2, 3)), out=seen)
    return most


def attention_blocks(
    query: Tensor,
    key: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    valid: Tensor | None = None,
) -> Iterator[tuple[slice, int, Tensor]]:
    """Attention probabilities in float32, a block of queries at a time.

    Yields `(rows, end, probabilities)`: `rows` is the slice of queries, `end` the number of
    tokens the block can see, and probabilities are `(batch, kv_heads, group, rows, end)`.
    """
    batch, query_heads, _, head_dim = query.shape
    kv_heads, tokens = key.shape[1], key.shape[2]
    folded = query.reshape(batch, kv_heads, query_heads // kv_heads, -1, head_dim).float() * scaling
    transposed = key.float().transpose(-1, -2)
    for rows, end, mask in _blocks(query.shape[2], tokens, valid, query.device):
        block = folded[:, :, :, rows]
        # The query heads of a KV head as rows of one product, or keys would be copied for each.
        logits = (block.flatten(2, 3) @ transposed[..., :end]).view(*block.shape[:-1], end)
        logits = _capped(logits, softcap)
        own = slice(0 if valid is not None else end - block.shape[3], None)  # what is hidden
        logits[..., own].masked_fill_(~mask[..., own].unsqueeze(2), float("-inf"))
        yield rows, end, logits.softmax(dim=-1)


def _blocks(
    queries: int, tokens: int, valid: Tensor | None, device: torch.device
) -> Iterator[tuple[slice, int, Tensor]]:
    """Blocks of queries, the tokens each can see, and who sees what: `(rows, end, mask)`.

    The mask is `(1, 1, rows, end)`, or `(batch, kv_heads, rows, end)` where there is padding.
    """
    past = tokens - queries
    for start in range(0, queries, BLOCK):
        stop = min(start + BLOCK, queries)
        end = past + stop
        columns = torch.arange(end, device=device)
        positions = torch.arange(past + start, end, device=device)
        mask = (columns <= positions[:, None])[None, None]
        if valid is not None:
            # A padding query keeps itself in view: a row that sees nothing would be NaN.
            own = columns == positions[:, None]
            mask = mask & (valid[:, :, None, :end] | own)
        yield slice(start, stop), end, mask


def _softcapped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    softcap: float,
    mask: Tensor,
) -> Tensor:
    """Attention with tanh-capped logits (Gemma 2), which SDPA does not offer."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    logits = _capped((query @ key.transpose(-1, -2)) * scaling, softcap)
    # Not -inf: the row of a padding query in a sliding layer sees nothing, and would be NaN.
    logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return logits.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits with Gemma 2's soft cap, where there is one."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
