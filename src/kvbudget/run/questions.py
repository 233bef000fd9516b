"""Contexts are read and compressed before any question arrives; each question is asked of the same
compressed context.

Where the budget is the context's (`bounded: context`), questions are asked together, those of
several contexts too; where it bounds what follows, too, each evicts tokens of its own, and they are
asked one by one.
"""

from collections.abc import Sequence

from kvbudget.run import one_by_one, together
from kvbudget.run.answer import Answer, Marker, on_top_of
from kvbudget.run.contexts import ReadContext, read_context
from kvbudget.run.grouping import contexts_at_once
from kvbudget.run.prefills import Shared
from kvbudget.run.runner import Runner
from kvbudget.sources.threads import at_once as measurements_at_once
from kvbudget.tasks.request import Context


def at_once(runner: Runner, contexts: Sequence[Context]) -> int:
    """How many contexts `run` may take together: it follows from the cell alone, so that a cell
    that was interrupted goes on as it would have."""
    longest = max(len(each.ids) for each in contexts)
    cache = runner.cache(longest)
    if cache.plan.bounded == "always":
        return 1
    held = cache.planned_bytes(runner.model.dtype.itemsize, tokens=longest)
    questions = max(len(each.questions) for each in contexts)
    return contexts_at_once(questions, held, runner.model.device.type)


def run(runner: Runner, contexts: Sequence[Context], shared: Sequence[Shared | None]) -> list[dict]:
    """Read contexts and ask their questions: samples, memory and timing of each context.

    Args:
        runner: reads them.
        contexts: one, or as many as `at_once` allows.
        shared: of each context, what was recorded of it.

    Peaks are those of a context alone: those after the first of `contexts`, which are held beside
    it, have none. `decode_s` are steps of one sequence alone, in either way of asking, of contexts
    that were read. What stands on top of the context's budget, a question and its answer, counts as
    mean tokens and bytes of a question.
    """
    reads, steps, alone = [], [], measurements_at_once() == 1
    for context, own in zip(contexts, shared, strict=True):
        read = read_context(runner, context.ids, own, alone=not reads)
        reads.append(read)
        on_top = read.cache.plan.bounded == "context"
        time = on_top and read.seconds is not None and alone
        steps.append(together.timed(runner, read.cache, context.questions[0]) if time else [])
    questions = [context.questions for context in contexts]
    if on_top:
        answers = together.ask(runner, [read.cache for read in reads], questions)
    else:
        (answered, steps[0]) = one_by_one.ask(runner, reads[0], questions[0])
        answers = [answered]
    return [_result(runner, *each) for each in zip(contexts, reads, answers, steps, strict=True)]


def _result(
    runner: Runner, context: Context, read: ReadContext, answers: list[Answer], steps: list[float]
) -> dict:
    plan, on_top = read.cache.plan, {}
    pairs = list(zip(context.questions, answers, strict=True))
    if plan.bounded == "context":
        on_top = on_top_of(pairs, plan.geometry.planned_bytes(1, runner.model.dtype.itemsize))
    marker = Marker(runner.tokenizer, runner.task, runner.model.dtype)
    return {
        "samples": [marker.sample(context, *pair, plan.tokens()) for pair in pairs],
        "memory": {**read.memory, **on_top},
        "timing": {"prefill_s": read.seconds, "decode_s": steps},
        "slots": read.slots,
    }
