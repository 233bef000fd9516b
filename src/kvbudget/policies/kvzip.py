"""KVzip (Kim et al., NeurIPS 2025): keeps what the model needs in order to repeat its context."""

from torch import Tensor

from kvbudget.cache.plan import MINIMUM, SINKS, Geometry
from kvbudget.policies.base import Candidates, Policy
from kvbudget.policies.pooling import pooled


class KVzip(Policy):
    """Keeps the tokens that were attended to most while the context was repeated.

    The whole context is held until `kvbudget.reconstruction.reconstruct` has read it once more;
    then all heads of all layers compete for one total. Published KVzip evicts nothing afterwards;
    here the cache stays within its budget: what comes after the context is kept before it.
    """

    signals = frozenset({"reconstruction"})
    reconstructs = True

    def budgets(self, geometry: Geometry, budget: int, prompt_tokens: int) -> list[list[int]]:
        self._prompt = prompt_tokens
        return super().budgets(geometry, budget, prompt_tokens)

    def score(self, candidates: Candidates) -> Tensor:
        later = candidates.positions - self._prompt
        scores = candidates.sums["reconstruction"]  # probabilities, so at most 1
        scores = scores.where(later < 0, (later + 2).float())
        return candidates.protect(scores, sinks=SINKS)

    def share_out(self, scores: list[Tensor], budgets: list[int]) -> list[int]:
        """Budgets of all heads of all layers by their scores of the context, `(1, tokens)` each.

        Each head keeps as many tokens as a cache needs to work.
        """
        heads = [range(len(budgets))]
        return pooled(scores, budgets, heads, safeguard=min(1.0, MINIMUM / min(budgets)))
