"""Head-Aware cache with Group-Aware eviction: ours.

Group-Aware: the KV heads of a layer score a token together, as each one's score is predicted from
the keys and values of all. Head-Aware: each head gets the budget that its function needs, which its
calibration tells.
"""

import warnings

import numpy as np
from torch import Tensor

from kvbudget.cache.budget import SINKS, Geometry
from kvbudget.cache.policy import Candidates, Policy
from kvbudget.cache.signals import Signal
from kvbudget.errors import UserError
from kvbudget.policies.allocate import at_one_level, in_proportion, water_fill
from kvbudget.policies.fitted import Fitted
from kvbudget.policies.pooling import pooled
from kvbudget.policies.predicted import FromHidden, Predicted
from kvbudget.policies.rules import RULES, SIGNALS

SHRINKAGE = 0.2  # share of the mean curve in that of a head
FLOOR = 0.2  # share of an equal budget that every head gets, whatever is predicted
CLASS_WEIGHTS = {"retrieval": 4.0, "induction": 2.0, "local": 1.0}


class HeadAware(Policy):
    """Budgets per head from its calibration, eviction by what the heads of a layer see together.

    Args:
        calibration: what the model's heads do (`kvbudget.calibration`). Without one, heads keep the
            most diverse keys, and the budgets of a layer's heads come from the prompt alone.
        allocation: `"floored"` (as much as a head would get if predicted scores of typical text
            competed over the whole model, but a fifth of an equal budget at least), `"predicted"`
            (the same without that), `"curves"` (water-filling on the loss curves), `"class"`
            (proportional to the weight of the head's class) or `"uniform"`.
        loss: which loss curves: `"answer"` (what the answer's likelihood loses), `"output"` (norm
            of the attention output) or `"mass"` (of attention).
        rule: `"predicted"`, or a scoring rule of `kvbudget.policies.rules`.
        features: what scores are predicted from: `"group"`, the keys and values of all KV heads of
            the layer, `"own"`, those of the head alone, or `"hidden"`, what attention is given.
        safeguard: α in [0, 1]. Each head keeps that share of its budget; the rest is pooled over
            its layer and spent by this prompt's scores (AdaKV, Feng et al., 2024). None is 1, or
            0.5 without a calibration.
        recent: tokens at the end that are always kept.
    """

    def __init__(
        self,
        calibration: Fitted | None,
        allocation: str,
        loss: str,
        rule: str,
        features: str,
        safeguard: float | None,
        recent: int,
    ) -> None:
        if safeguard is None:
            safeguard = 0.5 if calibration is None else 1.0
        if calibration is None and (rule, allocation) != ("diversity", "uniform"):
            warnings.warn(
                "there is no calibration of this model's heads, so head-aware keeps the most "
                "diverse keys; make one with kvbudget calibrate and pass it as calibration=",
                stacklevel=4,
            )
            allocation, rule = "uniform", "diversity" if rule == "predicted" else rule
        self.calibration, self.loss, self.rule = calibration, loss, rule
        self.allocation, self.safeguard, self.recent = allocation, safeguard, recent
        self.features, self.predicts = features, rule == "predicted"
        self.sees_input = self.predicts and features == "hidden"
        self.unrotates = self.predicts and features != "hidden"
        self.scorers = calibration.scorers(features) if self.predicts else []

    def budgets(self, geometry: Geometry, budget: int, prompt_tokens: int) -> list[list[int]]:
        layers, kv_heads = len(geometry.layers), geometry.kv_heads
        heads = layers * kv_heads
        tokens = max(prompt_tokens, budget)
        if self.calibration is not None:
            self.calibration.check(layers, kv_heads)
        total, floor = budget * heads, SINKS + self.recent
        if budget < floor:
            raise UserError(
                f"a budget of {budget} tokens is below the {floor} that every head keeps ({SINKS} "
                f"sinks and {self.recent} recent tokens); raise it"
            )
        if self.allocation == "uniform":
            spent = np.full(heads, budget)
        elif self.allocation == "class":
            weights = np.array([CLASS_WEIGHTS[name] for name in self.calibration.classes])
            spent = in_proportion(weights, total, floor, tokens)
        elif self.allocation in ("floored", "predicted"):
            if self.allocation == "floored":
                floor = max(floor, int(FLOOR * budget))
            spent = at_one_level(self.calibration.spread(self.features), total, floor, tokens)
        else:
            shares, losses = self.calibration.losses(self.loss, self.rule)
            # On few prompts a head that matters may seem not to: shrink to the mean curve.
            losses = (1 - SHRINKAGE) * losses + SHRINKAGE * losses.mean(axis=0)
            spent = water_fill(shares, losses, total, floor, tokens)
        return spent.reshape(layers, kv_heads).tolist()

    def signals(self, layer: int) -> list[Signal]:
        if self.predicts:
            kind = FromHidden if self.sees_input else Predicted
            return [kind(self.scorers[layer])]
        return [SIGNALS[self.rule]()] if self.rule in SIGNALS else []

    def score(self, candidates: Candidates) -> Tensor:
        own = self.predicts
        scores = candidates.signals[Predicted.name] if own else RULES[self.rule](candidates)
        return candidates.protect(scores, recent=self.recent)

    def redistribute(self, layer: int, scores: list[Tensor], budgets: list[int]) -> list[int]:
        return pooled(scores, budgets, [range(len(budgets))], self.safeguard)
