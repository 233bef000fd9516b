"""A context is read and compressed before any question arrives; each question is asked of the same
compressed context.

Where the budget is the context's (`bounded: context`), questions are asked together; where it
bounds what follows, too, each evicts tokens of its own, and they are asked one by one.
"""

import statistics

from kvbudget.run import one_by_one, together
from kvbudget.run.answer import Answer
from kvbudget.run.contexts import read_context
from kvbudget.run.runner import Runner
from kvbudget.tasks.request import Context, Question


def run(runner: Runner, context: Context) -> dict:
    """Read a context and ask its questions: samples, memory and timing of one context.

    `decode_s` are steps of one sequence alone, in either way of asking. What stands on top of the
    context's budget, a question and its answer, counts as mean tokens and bytes of a question.
    """
    read = read_context(runner, context.ids)
    plan, on_top = read.cache.plan, {}
    bounded = plan.bounded == "always"
    answers, steps = (one_by_one if bounded else together).ask(runner, read, context.questions)
    if not bounded:
        pairs = zip(context.questions, answers, strict=True)
        tokens = statistics.mean(len(each.ids) + len(answer.tokens) for each, answer in pairs)
        token_bytes = plan.geometry.planned_bytes(1, runner.model.dtype.itemsize)
        on_top = {"cache_tokens_on_top": tokens, "cache_bytes_on_top": tokens * token_bytes}
    samples = [
        {
            "id": question.id,
            "context_id": context.id,
            "prompt_tokens": len(context.ids) + len(question.ids),
            "budget_tokens": plan.tokens(),
            **_measured(runner, question, answer),
            "reference": question.references,
            "depth": list(question.depth),
        }
        for question, answer in zip(context.questions, answers, strict=True)
    ]
    return {
        "samples": samples,
        "memory": {**read.memory, **on_top},
        "timing": {"prefill_s": read.seconds, "decode_s": steps},
        "slots": read.slots,
    }


def _measured(runner: Runner, question: Question, answer: Answer) -> dict:
    """Score, likelihood and output of an answer; where it could have been another of the context:

    - `any`: whether the output has a value of any of the answers that there are,
    - `choice`: 1 if the reference is likelier than each other answer, by likelihoods summed over
      all tokens, which is fair as all are equally long; a tie is lost,
    - `choices`: how many answers there are; a choice by chance is right once in as many.
    """
    output = runner.tokenizer.decode(answer.tokens, skip_special_tokens=True)
    reference, *others = (runner.finite(each, question.id) for each in answer.log_likelihoods)
    known = [question.references, *(each.references for each in question.alternatives)]
    chosen = bool(others)
    return {
        "score": runner.task.score(output, question.references),
        "nll": -reference / len(question.answer_ids),
        "any": any(runner.task.score(output, each) > 0 for each in known) if chosen else None,
        "choice": float(reference > max(others)) if chosen else None,
        "choices": len(known) if chosen else None,
        "output": output,
    }
