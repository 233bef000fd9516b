"""Common words, after RULER (Hsieh et al., 2024; NVIDIA/RULER, common_words_extraction.py).

A numbered list of words in which ten occur more often than the others; the question asks for the
ten. Wording, numbers and the solved example in front are RULER's, and so are the words
(`wonderwords`), of which each split has its own. The list is the context, so there is one question.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from wonderwords import RandomWord

from kvbudget import prompts
from kvbudget.errors import UserError
from kvbudget.prompts import Tokenizer
from kvbudget.tasks import scoring, splits
from kvbudget.tasks.passages import closest
from kvbudget.tasks.request import TOLERANCE, Context, Question, Request


@dataclass(frozen=True)
class Options:
    """It has none."""


INSTRUCTION = (
    "Below is a numbered list of words. In these words, some appear more often than others."
    " Memorize the ones that appear most often.\n"
)
QUESTION = "\nQuestion: What are the 10 most common words in the above list?"
ANSWER_PREFIX = "Answer: The top 10 words that appear most often in the list are:"

COMMON = 10
#: Occurrences of a common and of another word in the list, then words in the solved example and
#: their occurrences; RULER has other numbers below 4,096 tokens.
_LONG, _SHORT = (30, 3, 40, 10, 3), (6, 1, 20, 3, 1)
_SHORT_BELOW = 4096
_NEW_TOKENS = 120


def make(request: Request, options: Options) -> list[Context]:
    """Contexts of one list each, with one question.

    Context and question together have `length` tokens, within 1%. Neither the haystack nor
    `questions` has a say.

    Raises:
        UserError: `length` cannot hold the common words, or takes more words than there are.
    """
    mine = splits.own(request.split, words())
    return [
        _context(request.tokenizer, identity, mine, request.length)
        for identity in request.identities("cwe")
    ]


def _context(tokenizer: Tokenizer, identity: str, mine: Sequence[str], length: int) -> Context:
    often, seldom, solved, *occurrences = _SHORT if length < _SHORT_BELOW else _LONG
    drawn = splits.draws(identity).sample(mine, len(mine))
    example, rest = drawn[:solved], drawn[solved:]
    front = f"{_listed(example, *occurrences, identity)}{QUESTION} {ANSWER_PREFIX}"
    front += f"{_answer(example)}\n"
    head, _ = prompts.prompt_frame(tokenizer)
    asked = prompts.ask(tokenizer, QUESTION, ANSWER_PREFIX)

    def ids(number: int) -> list[int]:
        """The context with the first `number` words of the rest."""
        listed = _listed(rest[:number], often, seldom, identity)
        return head + prompts.encode(tokenizer, front + listed)

    room = length - len(asked)
    # An entry takes two tokens or more: a number and a word.
    most = min(len(rest), room // (2 * seldom))
    number = closest(lambda number: len(ids(number)), room, most)
    made = ids(number)
    if number < COMMON or abs(len(made) - room) > TOLERANCE * length:
        raise UserError(
            f"cwe: {COMMON} to {len(rest)} words do not make a prompt of {length} tokens; with this"
            f" tokenizer they make at least {len(ids(COMMON)) + len(asked)}"
        )
    answer = prompts.encode(tokenizer, _answer(rest))
    question = Question.with_room(f"{identity}/q", asked, rest[:COMMON], answer, _NEW_TOKENS)
    return Context(identity, made, [question])


def score(output: str, references: list[str]) -> float:
    """The share of references found in the output."""
    return scoring.string_match_all(output, references)


@functools.cache
def words() -> tuple[str, ...]:
    """RULER's nouns, adjectives and verbs, sorted; single words without capitals."""
    return tuple(sorted(set(RandomWord().filter(regex="[a-z-]+"))))


def _listed(chosen: Sequence[str], often: int, seldom: int, identity: str) -> str:
    """Instruction and numbered list, in which the first words of `chosen` are the common ones."""
    entries = [*chosen[:COMMON]] * often + [*chosen[COMMON:]] * seldom
    splits.draws(identity, "order").shuffle(entries)
    return INSTRUCTION + " ".join(f"{i}. {word}" for i, word in enumerate(entries, 1))


def _answer(chosen: Sequence[str]) -> str:
    return "".join(f" {i}. {word}" for i, word in enumerate(chosen[:COMMON], 1))
