"""Signals of the attention that tokens receive, which several methods score by."""

from torch import Tensor

from kvbudget.cache.signals import Reading, Signal

OBSERVATION = 32  # queries at the end of a prompt that SnapKV looks at


class Attention(Signal):
    """All attention so far (H2O, Zhang et al., 2023)."""

    name = "attention"

    def observe(self, reading: Reading, numbers: Tensor) -> Tensor:
        return numbers.add_(reading.received())


class Window(Signal):
    """Attention of the last queries of the last long block, and of those after it (SnapKV, Li et
    al., 2024)."""

    name = "window"

    def observe(self, reading: Reading, numbers: Tensor) -> Tensor:
        if reading.new >= OBSERVATION:  # fewer are too few to see for themselves
            numbers.zero_()
        return numbers.add_(reading.received(last=OBSERVATION))
