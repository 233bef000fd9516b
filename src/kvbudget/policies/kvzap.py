"""KVzap (Jégou and Jeblick, 2026, arXiv 2601.07891), linear: KVzip+ predicted from hidden states.

A linear map of what a layer's attention is given predicts the logarithm of the KVzip+ score of each
KV head. Published, a token whose prediction is below one threshold, the same in all heads, is
masked once it leaves a window of 128 tokens, and how much is kept differs from prompt to prompt.
Here each head has the budget that such a threshold would leave it on typical text, so that bytes
are exact and saved.
"""

from torch import Tensor

from kvbudget.cache.budget import SINKS, Geometry
from kvbudget.cache.policy import Candidates, Policy
from kvbudget.errors import UserError
from kvbudget.policies.allocate import at_one_level
from kvbudget.policies.fitted import Fitted
from kvbudget.policies.pooling import pooled
from kvbudget.policies.predicted import FromHidden


class KVzap(Policy):
    """Keeps a window and the tokens of the highest predicted KVzip+ scores.

    Args:
        calibration: of the model's heads, with the map.
        safeguard: share of its budget that each head is sure of; the rest is pooled over its layer,
            at one threshold of this prompt.
        window: tokens at the end that are always kept, half of the budget at most.
        floor: share of an equal budget that every head gets; 0 as published.

    Raises:
        UserError: there is no calibration, or none with the map.
    """

    sees_input = True

    def __init__(
        self, calibration: Fitted | None, safeguard: float, window: int, floor: float
    ) -> None:
        if calibration is None:
            raise UserError(
                "method 'kvzap' needs a map that is fitted to the model; make one with kvbudget "
                "calibrate, hidden_maps: [kvzap], and pass it as calibration="
            )
        self.calibration, self.safeguard = calibration, safeguard
        self.window, self.floor = window, floor
        self.scorers = calibration.scorers("kvzap")

    def budgets(self, geometry: Geometry, budget: int, prompt_tokens: int) -> list[list[int]]:
        layers, kv_heads = len(geometry.layers), geometry.kv_heads
        self.calibration.check(layers, kv_heads)
        self.recent = min(self.window, budget // 2)
        total = budget * layers * kv_heads
        floor = min(max(SINKS + self.recent, int(self.floor * budget)), budget)
        tokens = max(prompt_tokens, budget)
        spent = at_one_level(self.calibration.spread("kvzap"), total, floor, tokens)
        return spent.reshape(layers, kv_heads).tolist()

    def signals(self, layer: int) -> list[FromHidden]:
        return [FromHidden(self.scorers[layer])]

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.protect(candidates.signals[FromHidden.name], recent=self.recent)

    def redistribute(self, layer: int, scores: list[Tensor], budgets: list[int]) -> list[int]:
        return pooled(scores, budgets, [range(len(budgets))], self.safeguard)
