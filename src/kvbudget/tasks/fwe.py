"""Frequent words, after RULER (Hsieh et al., 2024; NVIDIA/RULER, freq_words_extraction.py).

A text of made-up words whose frequencies follow a zeta distribution. The most frequent one is
written as dots and is noise; the question asks for the three after it. Wording and numbers are
RULER's. The text is the context, so there is one question.
"""

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

from kvbudget import prompts
from kvbudget.errors import UserError
from kvbudget.prompts import Tokenizer
from kvbudget.tasks import scoring, splits
from kvbudget.tasks.passages import closest
from kvbudget.tasks.request import Context, Question, Request


@dataclass(frozen=True)
class Options:
    """It has none."""


INSTRUCTION = (
    "Read the following coded text and track the frequency of each coded word."
    " Find the three most frequently appeared coded words. "
)
QUESTION = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three"
    " most frequently appeared words in the above coded text?"
)
ANSWER_PREFIX = (
    "Answer: According to the coded text above, the three most frequently appeared words are:"
)

DOTS = "..."
_LETTERS = 6
_ASKED = 3
#: Tokens of the prompt for each word of the vocabulary.
_TOKENS_A_WORD = 50
_NEW_TOKENS = 50


def make(request: Request, options: Options) -> list[Context]:
    """Contexts of one coded text each, with one question.

    Context and question together have `length` tokens, within 1%. Neither the haystack nor
    `questions` has a say.

    Raises:
        UserError: `length` is too short for three words to differ in frequency.
    """
    codes = splits.own(request.split, range(len(string.ascii_lowercase) ** _LETTERS))
    return [
        _context(request.tokenizer, identity, codes, request.length)
        for identity in request.identities("fwe")
    ]


def _context(tokenizer: Tokenizer, identity: str, codes: Sequence[int], length: int) -> Context:
    drawn = splits.draws(identity).sample(codes, length // _TOKENS_A_WORD - 1)
    vocabulary = [DOTS, *(splits.spell(code, string.ascii_lowercase, _LETTERS) for code in drawn)]
    head, _ = prompts.prompt_frame(tokenizer)
    asked = prompts.ask(tokenizer, QUESTION, ANSWER_PREFIX)

    def ids(number: int, dots: int = 0) -> list[int]:
        """The context of about `number` words, and `dots` that count for nothing after them."""
        text = " ".join([_text(vocabulary, number, identity), *[DOTS] * dots])
        return head + prompts.encode(tokenizer, INSTRUCTION + text)

    room = length - len(asked)
    # A step of `number` may be several words, hence too long by more than a short prompt's
    # tolerance: the last one that fits, then dots.
    number = closest(lambda number: len(ids(number)), room, length)
    while number and len(ids(number)) > room:
        number -= 1
    dots = closest(lambda dots: len(ids(number, dots)), room, length)
    counts = frequencies(number, _ASKED + 2)
    if len(set(counts)) < len(counts):
        raise UserError(
            f"fwe: in a prompt of {length} tokens the most frequent words occur equally often; use"
            " a longer length"
        )
    frequent = vocabulary[1 : _ASKED + 1]
    answer = prompts.encode(tokenizer, f" {', '.join(frequent)}")
    question = Question.with_room(f"{identity}/q", asked, frequent, answer, _NEW_TOKENS)
    return Context(identity, ids(number, dots), [question])


def score(output: str, references: list[str]) -> float:
    """The share of references found in the output."""
    return scoring.string_match_all(output, references)


def frequencies(number: int, ranks: int) -> list[int]:
    """Occurrences of each rank among about `number` words: number / (rank² ζ(2))."""
    return [int(number / (rank**2 * math.pi**2 / 6)) for rank in range(1, ranks + 1)]


def _text(vocabulary: Sequence[str], number: int, identity: str) -> str:
    counts = frequencies(number, len(vocabulary))
    text = [word for word, n in zip(vocabulary, counts, strict=True) for _ in range(n)]
    splits.draws(identity, "order").shuffle(text)
    return " ".join(text)
