"""Expected Attention (Devoto et al., 2025, arXiv 2510.00636): keeps what later queries should read;
and AdaKV (Feng et al., 2024) over it.

Queries to come are taken for normal, with the mean and the covariance that the prompt's have before
rotation, turned to the average of the positions that follow. The weight of a key k is then expected
to be E[exp(q·k)] = exp(μ·k + k'Σk / 2), over the sum of all. Soft caps are left out, as published.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvbudget.cache.budget import SINKS
from kvbudget.cache.policy import Candidates, Policy
from kvbudget.cache.positions import Rotation
from kvbudget.cache.signals import Arrival, Reading, Signal
from kvbudget.policies.pooling import pooled

FUTURE = 512  # positions after the prompt that are averaged over; a power of 2
WINDOW = 32  # tokens after the prompt that are kept while they are recent
UNSCORED = -1.0  # of a token after the prompt: no statistics are left to score it by


class Expected(Signal):
    """The share of attention that a token is expected to get, times the norm of its value.

    Grows with the prompt's queries, the sinks' left out; then the statistics are dropped, which
    for large heads are more than the cache.
    """

    name = "expected"
    unrotates = True

    def __init__(self) -> None:
        self._count: Tensor | None = None  # queries, (batch, 1)
        self._mean: Tensor | None = None  # (batch, query_heads, head_dim)
        self._scatter: Tensor | None = None  # covariance times count, (…, head_dim, head_dim)

    def arrive(self, arrival: Arrival) -> Tensor | None:
        if not arrival.in_prompt:
            return torch.full(arrival.positions.shape, UNSCORED, device=arrival.key.device)
        query = arrival.unrotated_query
        counts = (arrival.positions[:, :1, :, None] >= SINKS).float()
        count = counts.sum(dim=(2, 3))
        mean = (query * counts).sum(dim=2) / count.clamp(min=1)[..., None]
        apart = (query - mean.unsqueeze(2)) * counts
        self._merge(count, mean, apart.mT @ apart)
        return None

    def _merge(self, count: Tensor, mean: Tensor, scatter: Tensor) -> None:
        """Join the statistics of more queries (Chan et al., 1983)."""
        if self._count is None:
            self._count, self._mean, self._scatter = count, mean, scatter
            return
        total = self._count + count
        apart = mean - self._mean
        share = (count / total.clamp(min=1))[..., None]
        spread = (self._count[..., None] * share * apart).unsqueeze(-1) * apart.unsqueeze(-2)
        self._mean = self._mean + share * apart
        self._scatter = self._scatter + scatter + spread
        self._count = total

    def observe_layer(self, readings: Sequence[Reading]) -> None:
        if not readings[0].in_prompt:
            return
        super().observe_layer(readings)
        if readings[0].prompt_read:
            self._count = self._mean = self._scatter = None

    def observe(self, reading: Reading, numbers: Tensor) -> Tensor:
        tokens, keys = reading.tokens, reading.keys
        group = reading.query.shape[1] // len(tokens.heads)
        heads = list(tokens.heads)
        mean = self._mean.unflatten(1, (-1, group))[:, heads]
        scatter = self._scatter.unflatten(1, (-1, group))[:, heads]
        ahead = _turned_ahead(reading.rotation, tokens.positions.amax(dim=(1, 2)) + 1, keys)
        mean = mean @ ahead
        covariance = scatter / self._count.clamp(min=1)[..., None, None, None]
        covariance = ahead.mT.unsqueeze(2) @ covariance @ ahead.unsqueeze(2)
        logits = reading.scaling * mean @ keys.mT  # (batch, heads, group, tokens)
        for each in range(group):  # one query head at a time: keys are large
            spread = ((keys @ covariance[:, :, each]) * keys).sum(dim=-1)
            logits[:, :, each] += reading.scaling**2 * spread / 2
        kept_anyway = tokens.positions < SINKS  # sinks, and padding
        weights = logits.masked_fill(kept_anyway.unsqueeze(2), float("-inf")).softmax(dim=-1)
        weights = weights.mean(dim=2).masked_fill(kept_anyway, 0.0)
        return weights * tokens.values.float().norm(dim=-1)


def _turned_ahead(rotation: Rotation, start: Tensor, like: Tensor) -> Tensor:
    """What turns row vectors to the average of `FUTURE` positions, from `start` `(batch,)` on in
    each sequence: `(batch, 1, head_dim, head_dim)`.
    """
    turned = torch.eye(like.shape[-1], device=like.device)
    span = 1
    while span < FUTURE:  # the average of twice as many is that of two halves
        turned = (turned + rotation.move(turned, span)) / 2
        span *= 2
    turned = turned.expand(len(start), -1, -1)
    return rotation.move(turned, start[:, None, None]).unsqueeze(1)


class ExpectedAttention(Policy):
    """Keeps the tokens of the prompt that are expected to be attended to most.

    Published Expected Attention compresses a prompt and evicts nothing afterwards; here the cache
    stays within its budget: of what follows the prompt it keeps a window, and what leaves the
    window goes first.

    Args:
        safeguard: 1 is Expected Attention; below, the heads of a layer pool their budgets, and each
            keeps that share of its own: AdaKV (0.2 as published).
        epsilon: attention that every token is given before it is weighed by the norm of its value.
            Expected attention falls on few tokens; among the others the norms then decide.
    """

    unrotates = Expected.unrotates

    def __init__(self, safeguard: float, epsilon: float) -> None:
        self.safeguard, self.epsilon = safeguard, epsilon

    def signals(self, layer: int) -> list[Expected]:
        return [Expected()]

    def score(self, candidates: Candidates) -> Tensor:
        expected = candidates.signals[Expected.name]
        unscored = expected == UNSCORED
        scores = expected
        if self.epsilon:
            scores = expected + self.epsilon * candidates.values.float().norm(dim=-1)
            scores = scores.masked_fill(unscored, UNSCORED)
        window = min(WINDOW, min(candidates.budgets) // 2)
        recent = candidates.positions >= candidates.seen - window
        return candidates.protect(scores.masked_fill(recent & unscored, float("inf")))

    def redistribute(self, layer: int, scores: list[Tensor], budgets: list[int]) -> list[int]:
        return pooled(scores, budgets, [range(len(budgets))], self.safeguard)
