"""What a model answers to a question, however the questions of a context are asked."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbudget.run.runner import Runner
from kvbudget.tasks.request import Question


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


def log_likelihood(first: Tensor, after: Sequence[Tensor], ids: Sequence[int]) -> float:
    """Summed log-likelihood of an answer, in nats.

    Args:
        first: logits that predict its first token, `(vocab,)`.
        after: logits after each of its tokens, in parts, `(tokens, vocab)` each; those after the
            last token may be there or not.
        ids: its tokens.
    """
    predicted = torch.cat((first[None], *after))[: len(ids)].float()
    target = torch.tensor(ids, device=predicted.device)
    return -torch.nn.functional.cross_entropy(predicted, target, reduction="sum").item()


def is_over(runner: Runner, question: Question, tokens: Sequence[int], following: int) -> bool:
    """Whether an answer is at its end: there is no more room, or the model would end it."""
    return len(tokens) >= question.max_new_tokens or following in runner.stops()
