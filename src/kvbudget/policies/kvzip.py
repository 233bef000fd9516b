"""KVzip (Kim et al., NeurIPS 2025): keeps what the model needs in order to repeat its context."""

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvbudget.cache.budget import SINKS, Geometry
from kvbudget.cache.cache import BudgetedCache
from kvbudget.cache.policy import Candidates, Policy
from kvbudget.cache.signals import Reading, Signal
from kvbudget.policies.pooling import pooled
from kvbudget.policies.repetition import reconstruct

WINDOW = 32  # tokens after the context that are kept while they are recent


class Repetition(Signal):
    """The most attention from any query of a repetition of the context, which is shared out among
    the sinks and the chunk that is repeated alone."""

    name = "repetition"
    in_repetition = True

    def observe(self, reading: Reading, numbers: Tensor) -> Tensor:
        numbers[:, :, reading.repeated] = reading.most_received(SINKS).amax(dim=2)
        return numbers


class KVzip(Policy):
    """Keeps the tokens that were attended to most while the context was repeated.

    The whole context is held until `kvbudget.policies.repetition.reconstruct` has read it once
    more; then all heads of all layers compete for one total. Published KVzip evicts nothing
    afterwards. Where the cache is always bounded, it keeps a window of what follows the context, as
    SnapKV does, and what leaves the window goes first, as no repetition has scored it.

    Args:
        floor: share of an equal budget that every head gets whatever its scores; 0 as published.
    """

    holds_context = True

    def __init__(self, floor: float) -> None:
        self.floor = floor

    def budgets(self, geometry: Geometry, budget: int, prompt_tokens: int) -> list[list[int]]:
        self._prompt = prompt_tokens
        self._window = 0 if self.bounded == "context" else min(WINDOW, budget // 2)
        return super().budgets(geometry, budget, prompt_tokens)

    def signals(self, layer: int) -> list[Repetition]:
        return [Repetition()]

    def score(self, candidates: Candidates) -> Tensor:
        scores = candidates.signals[Repetition.name]
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

    def watching(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """While the context is repeated: what else is to be seen of the model; nothing here."""
        return nullcontext()

    def share_out(self, scores: list[Tensor], budgets: list[int]) -> list[int]:
        """Budgets of all heads of all layers: one total for all; each has its floor, and room for
        the sinks and the window."""
        heads = [range(len(budgets))]
        sure = max(self.floor, (SINKS + self._window) / min(budgets))
        return pooled(scores, budgets, heads, safeguard=sure)
