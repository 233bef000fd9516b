"""Prefill and, for a method that evicts, compression of a random prompt."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from kvbudget.run.bench.subjects import OURS, PRESSED, STOCK, attend_for, ours, theirs
from kvbudget.run.bench.timing import Turn, interleaved

CHUNK = 512  # tokens of the pieces of a bounded prefill
ROUNDS = 2


def measure(model: PreTrainedModel, tokens: int) -> list[dict]:
    """A row for each subject: prefill over the stock one; and of our methods, in pieces after each
    of which they evict, over that of the whole."""
    ids = torch.randint(5, 90, (1, tokens), device=model.device)
    make, _ = theirs(model)
    turns = {name: _turn(model, ids, make[name]) for name in make if name != PRESSED}
    pieces = {}
    for name in OURS:
        turns[name] = _turn(model, ids, _maker(model, name))
        into = _maker(model, name, prompt_tokens=tokens)
        pieces[name, CHUNK] = _turn(model, ids, into, CHUNK)
    seconds = interleaved(turns | pieces, ROUNDS)
    rows = []
    for name in turns:
        over = seconds[name, CHUNK] / seconds[name] if name in OURS else None
        times = {"prefill_s": seconds[name], "prefill_over_stock": seconds[name] / seconds[STOCK]}
        rows.append({"tokens": tokens, "subject": name, **times, "pieces_over_whole": over})
    return rows


def read(model: PreTrainedModel, ids: Tensor, cache: Cache, step: int | None = None) -> None:
    """Read a prompt `(1, tokens)` into an empty cache, whole or in pieces of `step` tokens."""
    attend_for(model, cache)
    for piece in ids.split(step or ids.shape[1], dim=1):
        model(piece, past_key_values=cache, logits_to_keep=1)


def _maker(model: PreTrainedModel, name: str, **options) -> Callable[[], Cache]:
    return lambda: ours(model, name, **options)


def _turn(
    model: PreTrainedModel, ids: Tensor, make: Callable[[], Cache], step: int | None = None
) -> Turn:
    # The change of attention is a matter of microseconds here.
    return Turn(lambda: read(model, ids, make(), step))
