"""Prompts that heads are calibrated on: a mixture of unlike tasks, disjoint from every test sample.

All text, keys, values and seeds come from the calibration split of the tasks.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from kvbudget.errors import UserError
from kvbudget.prompts import Tokenizer
from kvbudget.tasks import cwe, niah, perplexity, vt
from kvbudget.tasks.request import Request

CUE = 8  # tokens of a passage of the context that are given; the model continues it
COPIED = 16  # tokens that it should continue with
READ = 64  # tokens that are read on


@dataclass(frozen=True)
class Prompt:
    """A context and what is read after it.

    Attributes:
        task: which task of the mixture.
        context: token ids read first, and compressed by a method under test.
        later: token ids read afterwards.
        answers: how many of the last later tokens are the answer.
        needle: indices in the context of the tokens that hold the answer; empty if there are none.
    """

    task: str
    context: list[int]
    later: list[int]
    answers: int
    needle: tuple[int, ...] = ()

    def nll(self, logits: Tensor) -> Tensor:
        """Mean negative log-likelihood of the answer, in nats.

        `logits` are those of the last later tokens, `(at least answers + 1, vocab)`.
        """
        return torch.nn.functional.cross_entropy(*self._predicted_and_answer(logits))

    def answered_right(self, logits: Tensor) -> bool:
        """Whether more than nine in ten tokens of the answer are the likeliest."""
        predicted, answer = self._predicted_and_answer(logits)
        return bool((predicted.argmax(dim=-1) == answer).float().mean() > 0.9)

    def _predicted_and_answer(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The logits that predict the answer, `(answers, vocab)`, and its tokens."""
        answer = torch.tensor(self.later[-self.answers :], device=logits.device)
        return logits[-self.answers - 1 : -1].float(), answer


def needles(
    tokenizer: Tokenizer, passages: Sequence[str], length: int, count: int, seed: int
) -> list[Prompt]:
    """One of four needles in running text."""
    contexts = niah.make(
        _request(tokenizer, passages, length, count, seed), niah.Options(needles=4)
    )
    made = []
    for context in contexts:
        (question,) = context.questions
        answer = question.answer_ids
        needle = find(answer, context.ids)
        if not needle:
            raise UserError(
                "calibration: the tokenizer splits a number in an answer otherwise than in the "
                "text, so that its needle is not found; drop needles from the calibration's tasks"
            )
        later = [*question.ids, *answer]
        made.append(Prompt("needles", context.ids, later, len(answer), needle))
    return made


def recall(
    tokenizer: Tokenizer, passages: Sequence[str], length: int, count: int, seed: int
) -> list[Prompt]:
    """Continue a passage of the context, given its first tokens."""
    made = []
    for index, whole in enumerate(_texts(tokenizer, passages, length, count, seed)):
        context = whole[: length - CUE - COPIED]
        start = random.Random(f"recall/{seed}/{index}").randrange(
            len(context) // 8, len(context) - CUE - COPIED
        )
        middle, end = start + CUE, start + CUE + COPIED
        made.append(
            Prompt("recall", context, context[start:end], COPIED, tuple(range(middle, end)))
        )
    return made


def reading(
    tokenizer: Tokenizer, passages: Sequence[str], length: int, count: int, seed: int
) -> list[Prompt]:
    """Read on in the same text; the first later token is predicted by the context, not by it."""
    return [
        Prompt("reading", whole[: length - READ], whole[length - READ :], READ - 1)
        for whole in _texts(tokenizer, passages, length, count, seed + 1)
    ]


def _asked(
    task: str, module: ModuleType, tokenizer: Tokenizer, passages: Sequence[str],
    length: int, count: int, seed: int,
) -> list[Prompt]:  # fmt: skip
    """The first question of a task of the test, on calibration samples."""
    request = _request(tokenizer, passages, length, count, seed)
    contexts = module.make(request, module.Options())
    made = []
    for context in contexts:
        question = context.questions[0]
        later = [*question.ids, *question.answer_ids]
        made.append(Prompt(task, context.ids, later, len(question.answer_ids)))
    return made


TASKS: dict[str, Callable[..., list[Prompt]]] = {
    "needles": needles,
    "recall": recall,
    "reading": reading,
    "tracking": partial(_asked, "tracking", vt),
    "words": partial(_asked, "words", cwe),
}


def mixture(
    tokenizer: Tokenizer,
    passages: Sequence[str],
    *,
    tasks: Sequence[str],
    length: int,
    contexts: int,
    seed: int,
) -> list[Prompt]:
    """`contexts` prompts of about `length` tokens of each task.

    Raises:
        UserError: for an unknown task.
    """
    made = []
    for task in tasks:
        if task not in TASKS:
            raise UserError(
                f"calibration: no calibration task {task!r}; known are {', '.join(TASKS)}"
            )
        made += TASKS[task](tokenizer, passages, length, contexts, seed)
    return made


def find(part: list[int], whole: list[int]) -> tuple[int, ...]:
    """Indices of the last occurrence of `part` in `whole`.

    The first token of `part` may be merged differently in running text, so it may be missing.
    """
    for wanted in (part, part[1:]):
        for start in range(len(whole) - len(wanted), -1, -1):
            if wanted and whole[start : start + len(wanted)] == wanted:
                return tuple(range(start, start + len(wanted)))
    return ()


def _texts(
    tokenizer: Tokenizer, passages: Sequence[str], length: int, count: int, seed: int
) -> list[list[int]]:
    """Running text of exactly `length` tokens."""
    request = _request(tokenizer, passages, length, count, seed)
    contexts = perplexity.make(request, perplexity.Options())
    return [[*each.ids, *each.questions[0].answer_ids] for each in contexts]


def _request(
    tokenizer: Tokenizer, passages: Sequence[str], length: int, count: int, seed: int
) -> Request:
    return Request(
        tokenizer,
        passages,
        length=length,
        contexts=count,
        questions=1,
        seed=seed,
        split="calibration",
    )
