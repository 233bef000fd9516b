"""StreamingLLM (Xiao et al., ICLR 2024): attention sinks and the most recent tokens."""

from torch import Tensor

from kvbudget.cache.policy import Candidates, Policy


class StreamingLLM(Policy):
    """Keeps the first 4 tokens and the most recent B - 4.

    Args:
        positions: `"cache"`, as published: positions are those inside the cache; `"absolute"`:
            those in the sequence.
    """

    def __init__(self, positions: str) -> None:
        self.relative_positions = positions == "cache"

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.protect(candidates.positions.float())
