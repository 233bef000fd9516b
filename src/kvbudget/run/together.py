"""Questions of several contexts all at once: those of a context share it, compressed, and each has
a row of its own on top of it. Weights are read once a forward pass for all rows."""

from collections.abc import Iterator, Sequence

import torch

from kvbudget.cache.cache import BudgetedCache
from kvbudget.cache.joined import JoinedCache, join
from kvbudget.run.answer import Answer, given_answers
from kvbudget.run.greedy import Answers
from kvbudget.run.runner import Runner
from kvbudget.run.stopwatch import Stopwatch
from kvbudget.tasks.request import Question

#: Tokens of given answers that are read at once: logits of all of them are held.
_AT_ONCE = 512
#: Steps of one row alone that are timed in each context.
_TIMED = 4


def ask(
    runner: Runner, caches: Sequence[BudgetedCache], questions: Sequence[Sequence[Question]]
) -> list[list[Answer]]:
    """The answers to the questions of each context, each question of one token or more.

    The caches are of `bounded: context`, one for each context, and are emptied.
    """
    asked = [question for each in questions for question in each]
    contexts = [index for index, each in enumerate(questions) for _ in each]
    before = [caches[index].get_seq_length() for index in contexts]
    cache = join(caches, contexts, runner.model.dtype)
    first = runner.read_rows(cache, [each.ids for each in asked], before, last=True)
    starts = [start + len(each.ids) for start, each in zip(before, asked, strict=True)]
    state = cache.snapshot()
    answers = Answers(first, [each.max_new_tokens for each in asked], runner.stops())
    for row, ids, logits in _given(runner, cache, asked, starts):
        answers.learn(row, ids, logits)
    cache.restore(state)
    _write(runner, cache, starts, answers)
    results = map(Answer, answers.tokens, answers.log_likelihoods)
    return [[next(results) for _ in each] for each in questions]


def _given(
    runner: Runner, cache: JoinedCache, questions: list[Question], starts: Sequence[int]
) -> Iterator[tuple[int, list[int], torch.Tensor]]:
    """Rows, answers that their questions could have, the reference first, and the logits after each
    token of those, `(tokens, vocab)`."""
    state = cache.snapshot()
    given = [
        (place, row, ids)
        for row, each in enumerate(questions)
        for place, ids in enumerate(given_answers(each))
    ]
    # The first of all questions, then the second: so each part has rows on all contexts alike.
    given.sort(key=lambda each: each[0])
    for part in _parts([(row, ids) for _, row, ids in given]):
        rows = [row for row, _ in part]
        cache.restore(state)
        cache.batch_select_indices(torch.tensor(rows, device=runner.model.device))
        answers = [ids for _, ids in part]
        after = runner.read_rows(cache, answers, [starts[row] for row in rows])
        yield from zip(rows, answers, after, strict=True)


def _parts(given: list[tuple[int, list[int]]]) -> Iterator[list[tuple[int, list[int]]]]:
    """Answers in groups that are read at once."""
    step = max(1, _AT_ONCE // max(len(ids) for _, ids in given))
    return (given[start : start + step] for start in range(0, len(given), step))


def _write(runner: Runner, cache: JoinedCache, starts: Sequence[int], answers: Answers) -> None:
    """Write the answers to questions that have been read. Rows whose answers are over leave the
    others."""
    written, rows = answers.tokens, list(range(len(starts)))
    unread = {row: list(written[row]) for row in answers.follow()}
    while unread:
        if (left := list(unread)) != rows:
            places = [rows.index(row) for row in left]
            cache.batch_select_indices(torch.tensor(places, device=runner.model.device))
            rows = left
        at = [starts[row] + len(written[row]) - len(unread[row]) for row in rows]
        last = runner.read_rows(cache, list(unread.values()), at, last=True)
        following = dict(zip(rows, (int(logits.argmax()) for logits in last), strict=True))
        unread = {row: [token] for row, token in following.items() if answers.take(row, token)}


def timed(runner: Runner, cache: BudgetedCache, question: Question) -> list[float]:
    """Seconds of decode steps after a question, of a sequence alone on a compressed context, which
    is as it was afterwards. What is decoded is the reference's first tokens."""
    state = cache.snapshot()
    runner.read(cache, question.ids)
    seconds = []
    for token in question.answer_ids[:_TIMED]:
        watch = Stopwatch()
        runner.read(cache, [token])
        seconds.append(watch.seconds())
    cache.restore(state)
    return seconds
