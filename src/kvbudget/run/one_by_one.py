"""Questions of a context one after the other, each from the same compressed context."""

from torch import Tensor

from kvbudget.cache.cache import BudgetedCache
from kvbudget.run.answer import Answer, given_answers
from kvbudget.run.contexts import ReadContext
from kvbudget.run.greedy import is_over, log_likelihood
from kvbudget.run.runner import Runner
from kvbudget.run.stopwatch import Stopwatch
from kvbudget.tasks.request import Question


def ask(
    runner: Runner, read: ReadContext, questions: list[Question]
) -> tuple[list[Answer], list[float]]:
    """The answers to questions, and the seconds of each decode step."""
    cache, state = read.cache, read.cache.snapshot()
    answers, steps = [], []
    for question in questions:
        cache.restore(state)
        # After the question, the cache is the same for what might be answered and for answering.
        first = runner.read(cache, question.ids)[-1] if question.ids else read.last
        asked = cache.snapshot()
        likelihoods = []
        for ids in given_answers(question):
            cache.restore(asked)
            after = [runner.read(cache, part, logits=len(part)) for part in runner.pieces(ids)]
            likelihoods.append(log_likelihood(first, after, ids))
        cache.restore(asked)
        tokens, seconds = _written(runner, cache, question, first)
        answers.append(Answer(tokens, likelihoods))
        steps += seconds
    return answers, steps


def _written(
    runner: Runner, cache: BudgetedCache, question: Question, last: Tensor
) -> tuple[list[int], list[float]]:
    """Greedy answer from the logits after the question, and the seconds of each decode step."""
    tokens: list[int] = []
    seconds: list[float] = []
    stops, limit = runner.stops(), question.max_new_tokens
    while not is_over(stops, limit, tokens, token := int(last.argmax())):
        tokens.append(token)
        watch = Stopwatch()
        last = runner.read(cache, [token])[-1]
        seconds.append(watch.seconds())
    return tokens, seconds
