"""What a model answers to a question, however and by whatever library it is asked."""

import math
import statistics
from collections.abc import Collection
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from transformers import PreTrainedTokenizerBase

from kvbudget.errors import UserError
from kvbudget.tasks.request import Context, Question


@dataclass(frozen=True)
class Answer:
    """What a model answers, and how likely it finds what it might have answered.

    Attributes:
        tokens: its own answer, greedy.
        log_likelihoods: in nats, summed over all tokens: of the reference, then of each of the
            question's alternatives.
    """

    tokens: list[int]
    log_likelihoods: list[float]


def given_answers(question: Question) -> list[list[int]]:
    """Token ids of the reference answer, then of each alternative."""
    return [question.answer_ids, *(each.answer_ids for each in question.alternatives)]


def finite(nll: float, answer: str, dtype: object) -> float:
    """A likelihood, or an error that says what to do about one that is no number."""
    if not math.isfinite(nll):
        raise UserError(
            f"the likelihood of the answer to {answer} is {nll} in {dtype}: "
            "the model overflows; use another dtype (float32 is the safest)"
        )
    return nll


def on_top_of(pairs: Collection[tuple[Question, Answer]], token_bytes: int) -> dict[str, float]:
    """What stands on top of a context's budget, mean tokens and bytes of a question and its answer;
    `token_bytes` are those of a token that is stored as the model gives it."""
    tokens = statistics.mean(len(each.ids) + len(answer.tokens) for each, answer in pairs)
    return {"cache_tokens_on_top": tokens, "cache_bytes_on_top": tokens * token_bytes}


@dataclass(frozen=True)
class Marker:
    """What answers are marked by.

    Attributes:
        tokenizer: the model's.
        task: module of the task, which scores answers.
        dtype: of the model, to be named where it overflows.
    """

    tokenizer: PreTrainedTokenizerBase
    task: ModuleType
    dtype: object

    def sample(
        self, context: Context, question: Question, answer: Answer, budget_tokens: int | None
    ) -> dict[str, Any]:
        """A question as the record has it: what it was, and what came of it."""
        return {
            "id": question.id,
            "context_id": context.id,
            "prompt_tokens": len(context.ids) + len(question.ids),
            "budget_tokens": budget_tokens,
            **self._measured(question, answer),
            "reference": question.references,
            "depth": list(question.depth),
        }

    def _measured(self, question: Question, answer: Answer) -> dict[str, Any]:
        """Score, likelihood and output; where the answer could have been another of the context:

        - `any`: whether the output has a value of any of the answers that there are,
        - `choice`: 1 if the reference is likelier than each other answer, by likelihoods summed
          over all tokens, which is fair as all are equally long; a tie is lost,
        - `choices`: how many answers there are; a choice by chance is right once in as many.
        """
        output = self.tokenizer.decode(answer.tokens, skip_special_tokens=True)
        reference, *others = (
            finite(each, question.id, self.dtype) for each in answer.log_likelihoods
        )
        known = [question.references, *(each.references for each in question.alternatives)]
        chosen = bool(others)
        return {
            "score": self.task.score(output, question.references),
            "nll": -reference / len(question.answer_ids),
            "any": any(self.task.score(output, each) > 0 for each in known) if chosen else None,
            "choice": float(reference > max(others)) if chosen else None,
            "choices": len(known) if chosen else None,
            "output": output,
        }
