"""TOVA (Oren et al., EMNLP 2024): the token that the newest one attends to least goes."""

from torch import Tensor

from kvbudget.cache.policy import Candidates, Policy
from kvbudget.cache.signals import Reading, Signal


class Newest(Signal):
    """Attention of the newest token alone, summed over the query heads of a KV head."""

    name = "newest"

    def observe(self, reading: Reading, numbers: Tensor) -> Tensor:
        return reading.received(last=1)


class TOVA(Policy):
    """Keeps what the newest token attends to most, averaged over all heads of a layer, which keep
    the same tokens."""

    def signals(self, layer: int) -> list[Newest]:
        return [Newest()]

    def score(self, candidates: Candidates) -> Tensor:
        received = candidates.signals[Newest.name]  # of all heads, as they have one budget
        mean = received.mean(dim=1, keepdim=True).expand_as(received)
        return candidates.protect(mean, sinks=0)
