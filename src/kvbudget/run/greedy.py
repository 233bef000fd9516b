"""Greedy answers, and how likely given ones are. Needs nothing but torch."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor


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


def is_over(stops: Collection[int], limit: int, tokens: Sequence[int], following: int) -> bool:
    """Whether an answer is at its end: it has as many tokens as it may have, or the model would end
    it by one of its `stops`."""
    return len(tokens) >= limit or following in stops


class Answers:
    """Greedy answers to questions that are asked at once, a row each.

    As far as one goes along with a given answer, what follows is known and is not read again.

    Args:
        first: logits after each question, `(vocab,)` each.
        limits: tokens that each answer may have.
        stops: tokens that end one.

    Attributes:
        tokens: each answer as far as it is written.
        log_likelihoods: of the answers that were given to each row, in nats.
    """

    def __init__(self, first: Sequence[Tensor], limits: Sequence[int], stops: Collection[int]):
        self.tokens: list[list[int]] = [[] for _ in limits]
        self.log_likelihoods: list[list[float]] = [[] for _ in limits]
        self._first, self._limits, self._stops = first, limits, stops
        # What the model says next, by the part of an answer that it has read.
        self._known = [{(): int(logits.argmax())} for logits in first]

    def learn(self, row: int, ids: Sequence[int], after: Tensor) -> None:
        """Take in a given answer: logits `after` each of its tokens, `(tokens, vocab)`."""
        self.log_likelihoods[row].append(log_likelihood(self._first[row], [after], ids))
        following = after.argmax(dim=-1).tolist()
        self._known[row] |= {tuple(ids[: end + 1]): token for end, token in enumerate(following)}

    def follow(self) -> list[int]:
        """Write what is known, and tell the rows whose answers go on after it."""
        return [row for row in range(len(self.tokens)) if self._follow(row)]

    def _follow(self, row: int) -> bool:
        while (token := self._known[row].get(tuple(self.tokens[row]))) is not None:
            if not self.take(row, token):
                return False
        return True

    def take(self, row: int, token: int) -> bool:
        """Whether the answer of a row goes on with a token; if so, it is written."""
        if is_over(self._stops, self._limits[row], self.tokens[row], token):
            return False
        self.tokens[row].append(token)
        return True
