"""Compression by reconstruction: a context is read again, to see what repeating it attends to.

KVzip (Kim et al., NeurIPS 2025) asks the model to repeat its context, a chunk at a time, and feeds
it the right answer. The most that any query of the repetition attends to a token of the chunk is
the token's score. This costs a second pass over the context, and more attention than the first.
"""

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbudget.cache.cache import BudgetedCache, read_aside
from kvbudget.errors import UserError
from kvbudget.policies.registry import method
from kvbudget.prompts import encode, prompt_frame

CHUNK = method("kvzip").rereads  # tokens of the context that are repeated at a time
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
    """Compress a cache of KVzip or KVzip+ that holds a context, by repeating the context.

    Args:
        model: attached.
        tokenizer: the model's.
        cache: holds the context and nothing else, one sequence.
        ids: token ids of the context.

    Raises:
        UserError: the cache is of another method, or holds something else, or was compressed
            before; the model's context is too short to repeat.
    """
    repeat(model, tokenizer, cache, ids)
    cache.compress()


@torch.no_grad()
def repeat(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cache: BudgetedCache,
    ids: list[int],
) -> None:
    """Let the signals of repetitions grow over a whole context; what is repeated is forgotten.
    Arguments and errors as of `reconstruct`."""
    _check(model, cache, ids)
    with cache.plan.policy.watching(model):
        for chunk, repetition in repetitions(tokenizer, ids):
            with cache.repeating(chunk):
                read_aside(model, cache, repetition, logits=1)


def _check(model: PreTrainedModel, cache: BudgetedCache, ids: list[int]) -> None:
    if not cache.plan.policy.holds_context:
        raise UserError(
            "only a cache of method 'kvzip' or 'kvzip-plus' is compressed by repeating its context"
        )
    if not cache.awaits(len(ids)):
        raise UserError(
            f"the cache does not hold these {len(ids)} tokens and nothing else, one sequence "
            "without padding; read the context into an empty cache, then compress it once"
        )
    known = model.config.get_text_config(decoder=True).max_position_embeddings
    if len(ids) + min(len(ids), CHUNK) > known:
        raise UserError(
            f"a context of {len(ids)} tokens and a repetition exceed the {known} tokens that the "
            "model reads; use a shorter context"
        )


def repetitions(
    tokenizer: PreTrainedTokenizerBase, ids: list[int]
) -> Iterator[tuple[slice, list[int]]]:
    """Chunks of a context, and the tokens to read for each: a request, a cue and the chunk."""
    head, turn = prompt_frame(tokenizer)
    turn = turn or encode(tokenizer, "\n")
    # What a chat begins with is no part of what is said in it.
    first = len(head) if ids[: len(head)] == head else 0
    for start in range(first, len(ids), CHUNK):
        chunk = slice(start, min(start + CHUNK, len(ids)))
        request = encode(tokenizer, FIRST if start == first else LATER)
        cue = ids[max(first, start - CUE) : start]
        yield chunk, [*request, *cue, *turn, *ids[chunk]]
