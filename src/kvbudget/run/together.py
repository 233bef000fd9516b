"""Questions of several contexts all at once: those of a context share it, compressed, and each has
a row of its own on top of it. Weights are read once a forward pass for all rows."""

from collections.abc import Iterator, Sequence

import torch

from kvbudget.cache.cache import BudgetedCache
from kvbudget.cache.joined import JoinedCache, join
from kvbudget.run.answer import Answer, given_answers, is_over, log_likelihood
from kvbudget.run.runner import Runner
from kvbudget.run.stopwatch import Stopwatch
from kvbudget.tasks.request import Question

#: Tokens of given answers that are read at once: logits of all of them are held.
_AT_ONCE = 512
#: Steps of one row alone that are timed in each context.
_TIMED = 4

#: What the model says next, by the part of an answer that it has read.
Known = dict[tuple[int, ...], int]


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
    likelihoods: list[list[float]] = [[] for _ in asked]
    known: list[Known] = [{(): int(logits.argmax())} for logits in first]
    for row, ids, logits in _given(runner, cache, asked, starts):
        likelihoods[row].append(log_likelihood(first[row], [logits], ids))
        following = logits.argmax(dim=-1).tolist()
        known[row] |= {tuple(ids[: end + 1]): token for end, token in enumerate(following)}
    cache.restore(state)
    written = _written(runner, cache, asked, starts, known)
    answers = iter(map(Answer, written, likelihoods))
    return [[next(answers) for _ in each] for each in questions]


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


def _written(
    runner: Runner,
    cache: JoinedCache,
    questions: list[Question],
    starts: Sequence[int],
    known: Sequence[Known],
) -> list[list[int]]:
    """Greedy answers.

    As far as one goes along with a given answer, what follows is known already: those tokens are
    read at once. Rows whose answers are over leave the others.
    """
    written: list[list[int]] = [[] for _ in questions]

    def goes_on(row: int, following: int) -> bool:
        """Whether the answer of a row takes one token more, and if so, take it."""
        if is_over(runner.stops(), questions[row], written[row], following):
            return False
        written[row].append(following)
        return True

    rows, unread = list(range(len(questions))), {}
    for row in rows:
        while (following := known[row].get(tuple(written[row]))) is not None:
            if not goes_on(row, following):
                break
        else:
            unread[row] = list(written[row])
    while unread:
        if (left := list(unread)) != rows:
            places = [rows.index(row) for row in left]
            cache.batch_select_indices(torch.tensor(places, device=runner.model.device))
            rows = left
        at = [starts[row] + len(written[row]) - len(unread[row]) for row in rows]
        last = runner.read_rows(cache, list(unread.values()), at, last=True)
        following = dict(zip(rows, (int(logits.argmax()) for logits in last), strict=True))
        unread = {row: [token] for row, token in following.items() if goes_on(row, token)}
    return written


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
