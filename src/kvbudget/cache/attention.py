"""The attention function registered with transformers: where queries, keys and values meet.

Shapes: `query` is `(batch, query_heads, queries, head_dim)`; `key` and `value` are
`(batch, kv_heads, tokens, head_dim)`. Query head `h` reads KV head `h // group`. The last
`queries` tokens are the queries' own, so query `i` sees the tokens `j <= tokens - queries + i`.
Every kernel here works in blocks of queries: memory is O(tokens), never O(tokens²). A mask
that a layer or a caller brings along is used as it is.

`valid` says which tokens may be attended to: `(batch, kv_heads, tokens)`, False at padding, in
addition to causality; or `(batch, kv_heads or 1, queries or more, tokens)`, whose last rows are
what the queries see, in place of it. None is causality alone.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from kvbudget.cache.masks import everything, mask_for_attention
from kvbudget.errors import UserError

NAME = "kvbudget"
#: What some models' attention takes beside queries, keys, values and a mask: learned sinks
#: (GPT-OSS), indices of the tokens to attend to (DeepSeek V3.2), biases (T5), weights of heads.
UNKNOWN = ("s_aux", "sinks", "indices", "block_indices", "position_bias", "head_mask")
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
    dropout: float = 0.0,
    is_causal: bool = True,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention of one layer, with the signature that transformers' models call.

    A layer of our cache returns itself from `update` in place of keys and values, and then
    attends itself. Plain tensors (sliding-window layers, another cache or none) take the stock
    path wherever there is a 4-D mask. Without one attention is causal (`mask_for_attention`),
    unless the call itself says otherwise. What the module's `is_causal` says is for kernels that
    take no mask, and at odds with the masks of models whose prefix sees all of itself (PaliGemma).

    Raises:
        UserError: the model or the caller asks for attention that is not ours.
    """
    for name in UNKNOWN:
        if kwargs.get(name) is not None:
            raise UserError(
                f"{type(module).__name__} attends with {name!r}, which our attention does not "
                "know; use another model, or set attn_implementation back to 'eager'"
            )
    if not isinstance(attention_mask, Tensor | None):
        raise UserError(
            f"a {type(attention_mask).__name__} is a mask for flex attention; give a 4-D tensor"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is None and not is_causal:
        attention_mask = everything(query.device)
    if hasattr(key, "attend"):
        if dropout:
            raise UserError(
                "the model is in training and drops out attention, which our caches do not; call "
                "model.eval(), or use another cache"
            )
        output = _by_layer(key, query, scaling, softcap, attention_mask)
        return output.transpose(1, 2).contiguous(), None
    if attention_mask is None or attention_mask.dim() == 2:
        valid = None
        if attention_mask is not None:
            valid = attention_mask[:, None, : key.shape[2]].expand(-1, key.shape[1], -1)
        terms = {"scaling": scaling, "softcap": softcap, "valid": valid, "dropout": dropout}
        return attend(query, key, value, **terms).transpose(1, 2).contiguous(), None
    if softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    mask = attention_mask.expand(-1, -1, query.shape[2], -1)
    blocks = zip(query.split(BLOCK, dim=2), mask.split(BLOCK, dim=2), strict=True)
    outputs = [
        _softcapped(rows, key, value, scaling, softcap, own, dropout) for rows, own in blocks
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


@torch.compiler.disable
def _by_layer(layer, *args) -> Tensor:
    """Attention by a layer of our cache. A compiled model breaks its graph here and in `update`:
    what a cache holds changes from step to step, which a graph cannot follow."""
    return layer.attend(*args)


def register() -> None:
    """Make `attn_implementation="kvbudget"` known to transformers. Harmless when repeated."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, mask_for_attention)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    valid: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Causal attention over `(cached tokens, the queries' own tokens)`.

    Returns `(batch, query_heads, queries, head_dim)`. `dropout` is the share of attention weights
    that is dropped, in training.
    """
    queries, tokens = query.shape[2], key.shape[2]
    if softcap is None and valid is None and queries == tokens:
        return scaled_dot_product_attention(
            query, key, value, None, dropout, queries > 1, scale=scaling, enable_gqa=True
        )
    outputs = []
    for rows, end, mask in _blocks(queries, tokens, valid, query.device):
        block, seen = query[:, :, rows], (key[:, :, :end], value[:, :, :end])
        if mask.shape[1] > 1:
            mask = mask.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        if softcap is None:
            output = scaled_dot_product_attention(
                block, *seen, mask, dropout, scale=scaling, enable_gqa=True
            )
        else:
            output = _softcapped(block, *seen, scaling, softcap, mask, dropout)
        outputs.append(output)
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
    logits = capped(logits, softcap)
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
            real = valid if valid.dim() == 3 else valid.any(dim=-1)
            own = real[:, :, real.shape[2] - query.shape[2] :][:, :, rows]
            probabilities = probabilities * own[:, :, None, :, None]
        sums[:, :, :end] += probabilities.sum(dim=(2, 3))
    return sums


def attention_maxima(
    query: Tensor,
    key: Tensor,
    scaling: float,
    softcap: float | None = None,
    worth: Tensor | None = None,
) -> Tensor:
    """The most that any query of each query head attends to each token.

    In float32 and O(tokens) memory, without padding. `worth`, `(batch, queries)`, is what the
    attention of each query counts; None is 1. Returns `(batch, kv_heads, group, tokens)`.
    """
    batch, kv_heads, tokens, _ = key.shape
    group = query.shape[1] // kv_heads
    most = torch.zeros(batch, kv_heads, group, tokens, device=key.device)
    for rows, end, weights in attention_blocks(query, key, scaling=scaling, softcap=softcap):
        if worth is not None:
            weights = weights * worth[:, None, None, rows, None]
        seen = most[..., :end]
        torch.maximum(seen, weights.amax(dim=3), out=seen)
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
        logits = capped(logits, softcap)
        own = slice(0 if valid is not None else end - block.shape[3], None)  # what is hidden
        logits[..., own].masked_fill_(~mask[..., own].unsqueeze(2), float("-inf"))
        yield rows, end, logits.softmax(dim=-1)


def _blocks(
    queries: int, tokens: int, valid: Tensor | None, device: torch.device
) -> Iterator[tuple[slice, int, Tensor]]:
    """Blocks of queries, the tokens each can see, and who sees what: `(rows, end, mask)`.

    The mask is `(1, 1, rows, end)`, or `(batch, kv_heads or 1, rows, end)` where `valid` says more.
    """
    past = tokens - queries
    given = valid[:, :, -queries:] if valid is not None and valid.dim() == 4 else None
    for start in range(0, queries, BLOCK):
        stop = min(start + BLOCK, queries)
        rows, end = slice(start, stop), tokens if given is not None else past + stop
        columns = torch.arange(end, device=device)
        positions = torch.arange(past + start, past + stop, device=device)
        mask = (columns <= positions[:, None])[None, None]
        if valid is not None:
            own = columns == positions[:, None]
            if given is None:
                mask = mask & (valid[:, :, None, :end] | own)
            else:
                mask = given[:, :, rows]
                mask = mask | (own & ~mask.any(dim=-1, keepdim=True))
        yield rows, end, mask  # every row sees something, if itself alone, or it would be NaN


def _softcapped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    softcap: float,
    mask: Tensor,
    dropout: float,
) -> Tensor:
    """Attention with tanh-capped logits (Gemma 2), which SDPA does not offer.

    The mask is True where a token is seen, or is added to the logits.
    """
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    logits = capped((query @ key.transpose(-1, -2)) * scaling, softcap)
    if mask.dtype == torch.bool:
        # Not -inf: the row of a padding query in a sliding layer sees nothing, and would be NaN.
        logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    else:
        logits = logits + mask
    weights = logits.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.nn.functional.dropout(weights, dropout) @ value


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits with Gemma 2's soft cap, where there is one."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
