"""Compression by reconstruction: a context is read again, to see what repeating it attends to.

KVzip (Kim et al., NeurIPS 2025) asks the model to repeat its context, a chunk at a time, and feeds
it the right answer. The most that any query of the repetition attends to a token of the chunk is
the token's score. This costs a second pass over the context, and more attention than the first.
"""

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbudget.cache.budgeted import BudgetedCache, SlidingLayer
from kvbudget.tasks.base import encode, prompt_frame

CHUNK = 2048  # tokens of the context that are repeated at a time
CUE = 8  # tokens before a chunk that say where to go on
FIRST = "\n\nRepeat the previous context exactly."
LATER = "\n\nRepeat the part of the previous context exactly, starting with"


@torch.no_grad()
def reconstruct(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache: BudgetedCache,
    ids: list[int],
) -> None:
    """Compress a cache of method `"kvzip"` that holds a context, by repeating the context.

    Args:
        model: attached.
        tokenizer: the model's.
        cache: holds the context and nothing else, one sequence.
        ids: token ids of the context.
    """
    sliding = [layer for layer in cache.layers if isinstance(layer, SlidingLayer)]
    for chunk, repetition in repetitions(tokenizer, ids):
        cache.plan.repeated = chunk
        before = [layer.snapshot() for layer in sliding]
        inputs = torch.tensor([repetition], device=model.device)
        model(inputs, past_key_values=cache, logits_to_keep=1)
        for layer in cache.budgeted:
            layer.forget(len(repetition))
        for layer, state in zip(sliding, before, strict=True):
            layer.restore(state)
    cache.plan.repeated = None
    cache.compress()


def repetitions(
    tokenizer: PreTrainedTokenizerBase, ids: list[int]
) -> Iterator[tuple[slice, list[int]]]:
    """Chunks of a context, and the tokens to read for each: a request, a cue and the chunk."""
    _, turn = prompt_frame(tokenizer)
    turn = turn or encode(tokenizer, "\n")
    for start in range(0, len(ids), CHUNK):
        chunk = slice(start, min(start + CHUNK, len(ids)))
        request = encode(tokenizer, LATER if start else FIRST)
        yield chunk, [*request, *ids[max(0, start - CUE) : start], *turn, *ids[chunk]]
