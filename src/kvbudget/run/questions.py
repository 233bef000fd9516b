"""A context is read and compressed before any question arrives; each question is asked of the same
compressed context."""

import torch
from torch import Tensor

from kvbudget.cache.cache import BudgetedCache
from kvbudget.run.contexts import read_context
from kvbudget.run.runner import Runner
from kvbudget.run.stopwatch import Stopwatch
from kvbudget.tasks.request import Context, Question


def run(runner: Runner, context: Context) -> dict:
    """Read a context and ask its questions: samples, memory and timing of one context."""
    read = read_context(runner, context.ids)
    cache, state = read.cache, read.cache.snapshot()
    samples, steps = [], []
    for question in context.questions:
        cache.restore(state)
        # After the question, the cache is the same for scoring the reference and for answering.
        first = runner.read(cache, question.ids)[-1] if question.ids else read.last
        asked = cache.snapshot()
        nll = _answer_nll(runner, cache, question, first)
        cache.restore(asked)
        output, times = _generate(runner, cache, question, first)
        steps += times
        samples.append(
            {
                "id": question.id,
                "context_id": context.id,
                "prompt_tokens": len(context.ids) + len(question.ids),
                "budget_tokens": cache.plan.tokens(),
                "score": runner.task.score(output, question.references),
                "nll": nll,
                "output": output,
                "reference": question.references,
                "depth": list(question.depth),
            }
        )
    return {
        "samples": samples,
        "memory": read.memory,
        "timing": {"prefill_s": read.seconds, "decode_s": steps},
        "slots": read.slots,
    }


def _answer_nll(runner: Runner, cache: BudgetedCache, question: Question, first: Tensor) -> float:
    """Mean negative log-likelihood of a token of the reference answer, in nats.

    `first` are the logits that predict its first token. The answer is read in chunks.
    """
    total = 0.0
    for piece in runner.pieces(question.answer_ids):
        known = runner.read(cache, piece, logits=len(piece))
        predicted = torch.cat((first[None], known[:-1])).float()
        target = torch.tensor(piece, device=predicted.device)
        total += torch.nn.functional.cross_entropy(predicted, target, reduction="sum").item()
        first = known[-1]
    return runner.finite(total / len(question.answer_ids), question.id)


def _generate(
    runner: Runner, cache: BudgetedCache, question: Question, first: Tensor
) -> tuple[str, list[float]]:
    """Greedy answer from the logits after the question, and the seconds of each decode step."""
    stops = runner.stops()
    last, output, seconds = first, [], []
    while len(output) < question.max_new_tokens:
        token = int(last.argmax())
        if token in stops:
            break
        output.append(token)
        watch = Stopwatch()
        last = runner.read(cache, [token])[-1]
        seconds.append(watch.seconds())
    return runner.tokenizer.decode(output, skip_special_tokens=True), seconds
