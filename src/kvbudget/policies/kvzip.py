"""KVzip (Kim et al., NeurIPS 2025): keeps what the model needs in order to repeat its context."""

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbudget.cache.budget import SINKS, Geometry
from kvbudget.cache.cache import BudgetedCache
from kvbudget.cache.policy import OBSERVATION, Candidates, Policy
from kvbudget.policies.pooling import pooled
from kvbudget.policies.repetition import reconstruct


class KVzip(Policy):
    """Keeps the tokens that were attended to most while the context was repeated.

    The whole context is held until `kvbudget.policies.repetition.reconstruct` has read it once more;
    then all heads of all layers compete for one total. Published KVzip evicts nothing afterwards;
    here the cache stays within its budget: of what follows the context it keeps a window, as SnapKV
    does, and what leaves the window goes first, as no repetition has scored it.
    """

    signals = frozenset({"reconstruction"})
    reconstructs = True

    def budgets(self, geometry: Geometry, budget: int, prompt_tokens: int) -> list[list[int]]:
        self._prompt = prompt_tokens
        self._window = min(OBSERVATION, budget // 2)
        return super().budgets(geometry, budget, prompt_tokens)

    def score(self, candidates: Candidates) -> Tensor:
        scores = candidates.sums["reconstruction"]
        scores = scores.masked_fill(candidates.positions >= self._prompt, -1.0)
        recent = min(self._window, candidates.seen - self._prompt)
        return candidates.protect(scores, recent=recent)

    def finish(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        cache: BudgetedCache,
        ids: list[int],
    ) -> None:
        reconstruct(model, tokenizer, cache, ids)

    def share_out(self, scores: list[Tensor], budgets: list[int]) -> list[int]:
        """One total for all; each head has room for the sinks and the window."""
        heads = [range(len(budgets))]
        return pooled(scores, budgets, heads, safeguard=(SINKS + self._window) / min(budgets))
