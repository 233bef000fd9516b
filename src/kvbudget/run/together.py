"""Questions of a context all at once: they share the compressed context, whose keys are read once a
step, and each has a row of its own on top of it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kvbudget.cache.cache import BudgetedCache
from kvbudget.run.answer import Answer, given_answers, is_over, log_likelihood
from kvbudget.run.contexts import ReadContext
from kvbudget.run.runner import Runner
from kvbudget.run.stopwatch import Stopwatch
from kvbudget.tasks.request import Question

#: Tokens of given answers that are read at once: logits of all of them are held.
_AT_ONCE = 256
#: Steps of one row alone that are timed in each context.
_TIMED = 2


def ask(
    runner: Runner, read: ReadContext, questions: list[Question]
) -> tuple[list[Answer], list[float]]:
    """The answers to questions, each of one token or more, and the seconds of a few decode steps.

    The cache is one of `bounded: context`. A step that is timed is one of a sequence alone, however
    many are decoded together: the first question's first tokens are decoded once more for it.
    """
    cache, start = read.cache, read.cache.get_seq_length()
    first = runner.read_rows(
        cache, [each.ids for each in questions], [start] * len(questions), last=True
    )
    starts = [start + len(each.ids) for each in questions]
    asked = cache.snapshot()
    likelihoods = _likelihoods(runner, cache, questions, first, starts)
    cache.restore(asked)
    written = _written(runner, cache, questions, first, starts)
    cache.restore(asked)
    steps = _timed(runner, cache, written[0], starts[0])
    answers = [Answer(*each) for each in zip(written, likelihoods, strict=True)]
    return answers, steps


def _likelihoods(
    runner: Runner,
    cache: BudgetedCache,
    questions: list[Question],
    first: Sequence[Tensor],
    starts: Sequence[int],
) -> list[list[float]]:
    """Log-likelihoods of the answers that each question could have, the reference first."""
    asked = cache.snapshot()
    found: list[list[float]] = [[] for _ in questions]
    given = [(row, ids) for row, each in enumerate(questions) for ids in given_answers(each)]
    for part in _parts(given):
        rows = [row for row, _ in part]
        cache.restore(asked)
        cache.batch_select_indices(torch.tensor(rows, device=runner.model.device))
        answers = [ids for _, ids in part]
        after = runner.read_rows(cache, answers, [starts[row] for row in rows])
        for row, ids, logits in zip(rows, answers, after, strict=True):
            found[row].append(log_likelihood(first[row], [logits], ids))
    return found


def _parts(given: list[tuple[int, list[int]]]) -> Iterator[list[tuple[int, list[int]]]]:
    """Answers in groups that are read at once."""
    step = max(1, _AT_ONCE // max(len(ids) for _, ids in given))
    return (given[start : start + step] for start in range(0, len(given), step))


def _written(
    runner: Runner,
    cache: BudgetedCache,
    questions: list[Question],
    first: Sequence[Tensor],
    starts: Sequence[int],
) -> list[list[int]]:
    """Greedy answers. Rows go on until all are over; what one writes past its end is dropped."""
    written: list[list[int]] = [[] for _ in questions]
    open_rows = set(range(len(questions)))
    last, step = first, 0
    while True:
        following = [int(logits.argmax()) for logits in last]
        open_rows -= {
            row
            for row in open_rows
            if is_over(runner, questions[row], written[row], following[row])
        }
        if not open_rows:
            return written
        for row in open_rows:
            written[row].append(following[row])
        at = [start + step for start in starts]
        last = runner.read_rows(cache, [[token] for token in following], at, last=True)
        step += 1


def _timed(runner: Runner, cache: BudgetedCache, tokens: list[int], start: int) -> list[float]:
    """Seconds of the first decode steps of the first row, alone on the context."""
    cache.batch_select_indices(torch.tensor([0], device=runner.model.device))
    seconds = []
    for place, token in enumerate(tokens[:_TIMED]):
        watch = Stopwatch()
        runner.read_rows(cache, [[token]], [start + place], last=True)
        seconds.append(watch.seconds())
    return seconds
