"""Perplexity of running text, read through a cache that stays within its budget throughout.

The first half of the text is the context, the second half is the answer. Both are fed piece by
piece (`chunk` tokens, by whoever runs the cell) through the same bounded cache, and the answer's
mean negative log-likelihood a token is the result. Nothing is generated, nothing is scored as
right or wrong. `length` is the amount of text; a model's context is its only limit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from kvbudget import prompts
from kvbudget.errors import UserError
from kvbudget.tasks import base
from kvbudget.tasks.base import Context, Question

#: `chunk`: tokens that are fed at a time. It does not change the samples.
DEFAULTS = {"chunk": 64}


def make(
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[str],
    *,
    length: int,
    contexts: int,
    questions: int,
    seed: int,
    split: str,
    options: Mapping[str, Any],
) -> list[Context]:
    """Contexts of half of `length` tokens, each with one question: the other half.

    Context and answer together have exactly `length` tokens of plain text, without the chat
    template: the text is read, not talked about. `questions` has no say.

    Raises:
        UserError: the haystack is too short.
    """
    options = base.options_of(options, DEFAULTS)
    if options["chunk"] < 1:
        raise UserError("perplexity: chunk must be at least 1 token")
    text = base.split_passages(passages, split)
    made = []
    for index in range(contexts):
        identity = f"perplexity/{split}/L{length}/s{seed}/{index}"
        start = base.start_passage(text, index, contexts, base.draws(identity)) if text else 0
        ids = _text_ids(tokenizer, base.passages_from(text, start), length)
        half = length // 2
        rest = Question(f"{identity}/rest", [], [], answer_ids=ids[half:], max_new_tokens=0)
        made.append(Context(identity, ids[:half], [rest]))
    return made


def score(output: str, references: list[str]) -> None:
    """None: there is no right answer, only a likelihood."""
    return None


def _text_ids(
    tokenizer: PreTrainedTokenizerBase, passages: Sequence[str], length: int
) -> list[int]:
    whole = base.passages_within(tokenizer, passages, length)
    # A few more than estimated: joined text may take fewer tokens than its passages alone.
    body = " ".join(passages[: whole + whole // 50 + 2])
    ids = prompts.opening(tokenizer) + prompts.encode(tokenizer, body)
    if len(ids) < length:
        raise UserError(f"the haystack is too short for a text of {length} tokens")
    return ids[:length]
