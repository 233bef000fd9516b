"""What a task is asked for, and what it gives: contexts with questions."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvbudget.prompts import Tokenizer

#: Largest relative difference between a prompt's length and the length asked for.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Request:
    """Samples to make. The same request and options give the same samples.

    Attributes:
        tokenizer: of the model that reads them.
        passages: the haystack, of which each split has its own part.
        length: tokens of a context and a question together, within `TOLERANCE`.
        contexts: how many.
        questions: of each context, at most.
        seed: of all random draws.
        split: an entry of `kvbudget.tasks.splits.SPLITS`.
    """

    tokenizer: Tokenizer
    passages: Sequence[str]
    length: int
    contexts: int
    questions: int
    seed: int
    split: str

    def identities(self, name: str) -> list[str]:
        """What each context is called: all that its random draws depend on."""
        place = f"{name}/{self.split}/L{self.length}/s{self.seed}"
        return [f"{place}/{index}" for index in range(self.contexts)]

    @property
    def slack(self) -> int:
        """Tokens by which a part of a prompt may miss its length."""
        return int(TOLERANCE / 4 * self.length)


@dataclass(frozen=True)
class Alternative:
    """Another answer that a question could have had, as texts and as tokens."""

    references: list[str]
    answer_ids: list[int]


@dataclass(frozen=True)
class Question:
    """What follows a context: `ids` are the question, the end of the chat turn and the prefix of
    the answer; the model continues from there.

    `answer_ids` is the reference answer as tokens, for its negative log-likelihood. `depth` is
    where what is asked for stands, in shares of the context's tokens, if the task hides something.
    `alternatives` are the answers to the other questions of its kind that could have been asked of
    the context, where there are any to choose among.
    """

    id: str
    ids: list[int]
    references: list[str]
    answer_ids: list[int]
    max_new_tokens: int
    depth: tuple[float, ...] = ()
    alternatives: tuple[Alternative, ...] = ()

    @classmethod
    def with_room(
        cls,
        identity: str,
        ids: list[int],
        references: list[str],
        answer_ids: list[int],
        new_tokens: int,
    ) -> "Question":
        """A question with room for `new_tokens` of output, or for the whole answer if longer."""
        return cls(identity, ids, references, answer_ids, max(new_tokens, len(answer_ids)))


@dataclass(frozen=True)
class Context:
    """A prompt up to, and without, the question: it is compressed before any question is read."""

    id: str
    ids: list[int]
    questions: list[Question]
