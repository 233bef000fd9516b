"""Perplexity of running text, read through a cache that stays within its budget throughout.

The first half of the text is the context, the second half is the answer. Both are fed piece by
piece (`chunk` tokens, by whoever runs the cell) through the same bounded cache, and the answer's
mean negative log-likelihood a token is the result. Nothing is generated, nothing is scored as
right or wrong. `length` is the amount of text; a model's context is its only limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kvbudget import prompts
from kvbudget.errors import UserError
from kvbudget.options import count, field
from kvbudget.prompts import Tokenizer
from kvbudget.tasks import splits
from kvbudget.tasks.passages import passages_from, passages_within, start_passage
from kvbudget.tasks.request import Context, Question, Request


@dataclass(frozen=True)
class Options:
    """How the text is fed. It does not change the samples."""

    chunk: int = field(count(64, "Tokens that are fed at a time."))


def make(request: Request, options: Options) -> list[Context]:
    """Contexts of half of `length` tokens, each with one question: the other half.

    Context and answer together have exactly `length` tokens of plain text, without the chat
    template: the text is read, not talked about. `questions` has no say.

    Raises:
        UserError: the haystack is too short.
    """
    text = splits.split_passages(request.passages, request.split)
    made = []
    for index, identity in enumerate(request.identities("perplexity")):
        rng = splits.draws(identity)
        start = start_passage(text, index, request.contexts, rng) if text else 0
        ids = _text_ids(request.tokenizer, passages_from(text, start), request.length)
        half = request.length // 2
        rest = Question(f"{identity}/rest", [], [], answer_ids=ids[half:], max_new_tokens=0)
        made.append(Context(identity, ids[:half], [rest]))
    return made


def score(output: str, references: list[str]) -> None:
    """None: there is no right answer, only a likelihood."""
    return None


def _text_ids(tokenizer: Tokenizer, passages: Sequence[str], length: int) -> list[int]:
    whole = passages_within(tokenizer, passages, length)
    # A few more than estimated: joined text may take fewer tokens than its passages alone.
    body = " ".join(passages[: whole + whole // 50 + 2])
    ids = prompts.opening(tokenizer) + prompts.encode(tokenizer, body)
    if len(ids) < length:
        raise UserError(f"the haystack is too short for a text of {length} tokens")
    return ids[:length]
