"""Slots of random tokens, and attention over them by its textbook formula in float64."""

import torch

from kvbudget.cache.quantize import Codec, Coding
from kvbudget.cache.slots import Slots, Tokens


def filled(
    lengths: list[int],
    *,
    batch: int = 1,
    head_dim: int = 64,
    dtype: torch.dtype = torch.float32,
    bits: tuple[int, int] | None = None,
    padding: int = 0,
    device: str = "cpu",
    seed: int = 0,
) -> Slots:
    """Slots whose KV heads hold so many tokens, heads of equal length in one segment; `padding` of
    the first tokens are padding in the first sequence."""
    torch.manual_seed(seed)
    by_length: dict[int, list[int]] = {}
    for head, length in enumerate(lengths):
        by_length.setdefault(length, []).append(head)
    shapes = [(tuple(heads), length + 3) for length, heads in by_length.items()]
    like = torch.randn(batch, len(lengths), 40, head_dim, dtype=dtype, device=device)
    coding = Coding.of(Codec(*bits, head_dim), like + 1) if bits else None
    slots = Slots(shapes, like, (), coding)
    for tensor in slots.tensors():  # what is not filled must not be read
        tensor.fill_(
            127
            if tensor.dtype == torch.uint8
            else float("nan")
            if tensor.is_floating_point()
            else 7
        )
    for segment, length in zip(slots.segments, by_length, strict=True):
        size = (batch, len(segment.heads), length, head_dim)
        key, value = (torch.randn(size, dtype=dtype, device=device) for _ in "kv")
        positions = torch.arange(length, dtype=torch.int32, device=device).repeat(*size[:2], 1)
        positions[:1, :, :padding] = -1
        slots.append(segment, Tokens(segment.heads, key + 1, value, positions, {}))
    return slots


def textbook(query, slots, *, scaling, softcap=None, padded=False):
    """Output and logsumexp of each row, and what each token receives, by head, in float64."""
    output = torch.zeros_like(query, dtype=torch.float64)
    lse = torch.full(query.shape[:3], float("-inf"), dtype=torch.float64, device=query.device)
    received = {}
    for tokens in slots.tokens():
        for i, head in enumerate(tokens.heads):
            if not tokens.count:
                continue
            key, value = tokens.keys[:, i].double(), tokens.values[:, i].double()
            logits = query[:, head].double() @ key.mT * scaling
            if softcap is not None:
                logits = softcap * torch.tanh(logits / softcap)
            if padded:
                logits = logits.masked_fill(tokens.positions[:, i, None] < 0, float("-inf"))
            weights = logits.softmax(dim=-1)
            output[:, head], received[head] = weights @ value, weights.sum(dim=1)
            lse[:, head] = logits.logsumexp(dim=-1)
    return output, lse, received
