"""What a head does, read from its attention: retrieval, induction, local, sink, previous token.

Attention is `(query_heads, later, tokens)`; the last `later` tokens are the queries' own. Every
function returns one number a query head, `(query_heads,)`.
"""

import torch
from torch import Tensor

from kvbudget.cache.budget import SINKS

NEAR = 64  # tokens that count as local


def retrieval(attention: Tensor, ids: list[int], answers: int, needle: tuple[int, ...]) -> Tensor:
    """Share of the needle that the head copies (Wu et al., 2024).

    At the step that generates an answer token, the head scores if the token it attends to most
    lies in the needle and is the token generated. `ids` are all tokens, context and later.
    """
    queries = attention.shape[1]
    steps = range(queries - answers - 1, queries - 1)
    best = attention[:, list(steps)].argmax(dim=-1)
    tokens = torch.tensor(ids, device=attention.device)
    generated = tokens[-answers:]
    inside = torch.isin(best, torch.tensor(needle, device=attention.device))
    return (inside & (tokens[best] == generated)).sum(dim=-1).float() / len(needle)


def induction(attention: Tensor, period: int) -> Tensor:
    """Attention to the token after the previous occurrence, in a sequence that is read twice
    (Olsson et al., 2022): the mean of A[i, i - T + 1]."""
    queries, tokens = attention.shape[1:]
    rows = torch.arange(queries, device=attention.device)
    return attention[:, rows, rows + tokens - queries - period + 1].mean(dim=-1)


def local(attention: Tensor) -> Tensor:
    """Attention to the last 64 tokens, the query's own among them."""
    queries, tokens = attention.shape[1:]
    positions = torch.arange(tokens - queries, tokens, device=attention.device)[:, None]
    columns = torch.arange(tokens, device=attention.device)
    return (attention * (columns > positions - NEAR)).sum(dim=-1).mean(dim=-1)


def sink(attention: Tensor) -> Tensor:
    """Attention to the first 4 tokens."""
    return attention[..., :SINKS].sum(dim=-1).mean(dim=-1)


def previous(attention: Tensor) -> Tensor:
    """Attention to the previous token."""
    queries, tokens = attention.shape[1:]
    rows = torch.arange(queries, device=attention.device)
    return attention[:, rows, rows + tokens - queries - 1].mean(dim=-1)
