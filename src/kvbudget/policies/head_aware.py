"""Head-Aware cache with Group-Aware eviction: ours.

Group-Aware: the KV heads of a layer score a token together, as each one's score is predicted from
the keys and values of all. Head-Aware: each head gets the budget that its function needs, which its
calibration tells.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from kvbudget.cache.budget import SINKS, Geometry
from kvbudget.cache.policy import Candidates, Policy
from kvbudget.cache.signals import Signal
from kvbudget.errors import UserError
from kvbudget.policies.allocate import in_proportion, water_fill
from kvbudget.policies.pooling import pooled
from kvbudget.policies.predicted import Predicted, Scorer
from kvbudget.policies.rules import RULES, SIGNALS

SHRINKAGE = 0.2  # share of the mean curve in that of a head
CLASS_WEIGHTS = {"retrieval": 4.0, "induction": 2.0, "local": 1.0}


class HeadAware(Policy):
    """Budgets per head from its calibration, eviction by what the heads of a layer see together.

    Args:
        calibration: what the model's heads do (`kvbudget.calibration`). Without one, heads keep the
            most diverse keys, and the budgets of a layer's heads come from the prompt alone.
        allocation: `"predicted"` (as much as a head would get if predicted scores of typical text
            competed over the whole model), `"curves"` (water-filling on the loss curves), `"class"`
            (proportional to the weight of the head's class) or `"uniform"`.
        loss: which loss curves: `"answer"` (what the answer's likelihood loses), `"output"` (norm
            of the attention output) or `"mass"` (of attention).
        rule: `"predicted"`, or a scoring rule of `kvbudget.policies.rules`.
        safeguard: α in [0, 1]. Each head keeps that share of its budget; the rest is pooled over
            its layer and spent by this prompt's scores (AdaKV, Feng et al., 2024). None is 1, or
            0.5 without a calibration.
        recent: tokens at the end that are always kept.
    """

    def __init__(
        self,
        calibration: dict | None,
        allocation: str,
        loss: str,
        rule: str,
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
        self.unrotates = rule == "predicted"
        self.scorers = _scorers(calibration) if self.unrotates else []

    def budgets(self, geometry: Geometry, budget: int, prompt_tokens: int) -> list[list[int]]:
        layers, kv_heads = len(geometry.layers), geometry.kv_heads
        heads = layers * kv_heads
        tokens = max(prompt_tokens, budget)
        if self.calibration is not None:
            found = (len(self.calibration["layers"]), self.calibration["kv_heads"])
            if found != (layers, kv_heads):
                raise UserError(
                    f"the calibration is of a model with {found} (layers, KV heads), this one has "
                    f"{(layers, kv_heads)}; make the calibration anew for this model"
                )
        total, floor = budget * heads, SINKS + self.recent
        if budget < floor:
            raise UserError(
                f"a budget of {budget} tokens is below the {floor} that every head keeps ({SINKS} "
                f"sinks and {self.recent} recent tokens); raise it"
            )
        if self.allocation == "uniform":
            spent = np.full(heads, budget)
        elif self.allocation == "class":
            names = [name for row in self.calibration["classes"] for name in row]
            weights = np.array([CLASS_WEIGHTS[name] for name in names])
            spent = in_proportion(weights, total, floor, tokens)
        elif self.allocation == "predicted":
            spent = in_proportion(self._spread(budget / tokens), total, floor, tokens)
        else:
            shares = np.array(self.calibration["shares"])
            losses = self._losses().reshape(heads, -1)
            # On few prompts a head that matters may seem not to: shrink to the mean curve.
            losses = (1 - SHRINKAGE) * losses + SHRINKAGE * losses.mean(axis=0)
            spent = water_fill(shares, losses, total, floor, tokens)
        return spent.reshape(layers, kv_heads).tolist()

    def _spread(self, share: float) -> np.ndarray:
        """What each head keeps of typical text if all heads together keep `share`, `(heads,)`."""
        spread, shares = np.array(self.calibration["spread"]), self.calibration["shares"]
        rows = spread.reshape(-1, len(shares))
        return np.array([np.interp(share, shares, row) for row in rows])

    def _losses(self) -> np.ndarray:
        """Loss curves `(layers, kv_heads, shares)`."""
        curves = self.calibration["loss"].get(self.loss, {})
        if self.rule not in curves:
            raise UserError(
                f"the calibration holds no {self.loss} curves of rule {self.rule!r}, only of "
                f"{', '.join(curves) or 'none'}; add the rule to the calibration's answer_rules, "
                "or use the method with loss: output, or with another rule or allocation"
            )
        return np.array(curves[self.rule])

    def signals(self, layer: int) -> list[Signal]:
        if self.rule == "predicted":
            return [Predicted(self.scorers[layer])]
        return [SIGNALS[self.rule]()] if self.rule in SIGNALS else []

    def score(self, candidates: Candidates) -> Tensor:
        predicted = self.rule == "predicted"
        scores = candidates.signals[Predicted.name] if predicted else RULES[self.rule](candidates)
        return candidates.protect(scores, recent=self.recent)

    def redistribute(self, layer: int, scores: list[Tensor], budgets: list[int]) -> list[int]:
        return pooled(scores, budgets, [range(len(budgets))], self.safeguard)


def _scorers(calibration: dict) -> list[Scorer]:
    """The maps of a calibration, a layer each."""
    weights = [torch.tensor(own) for own in calibration["scorer"]["weights"]]
    biases = [torch.tensor(own) for own in calibration["scorer"]["bias"]]
    return [Scorer(*own) for own in zip(weights, biases, strict=True)]
