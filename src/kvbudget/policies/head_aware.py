"""Head-Aware cache with Group-Aware eviction: ours.

Each KV head gets the budget that its function needs, and the heads of a group (one layer, one
class) may decide together what to evict. The calibration says what a head needs; where heads pool
their budgets, the prompt corrects it.
"""

import numpy as np
import torch
from torch import Tensor

from kvbudget.cache.budget import SINKS, Geometry
from kvbudget.cache.policy import Candidates, Policy
from kvbudget.cache.signals import Signal
from kvbudget.errors import UserError
from kvbudget.policies.allocate import by_class, water_fill
from kvbudget.policies.classify import classify
from kvbudget.policies.pooling import pooled
from kvbudget.policies.rules import RULES, SIGNALS, relative

SHRINKAGE = 0.2  # share of the mean curve in that of a head
CLASS_WEIGHTS = {"retrieval": 4.0, "induction": 2.0, "local": 1.0}


class HeadAware(Policy):
    """Budgets per head from its calibration, eviction by groups of heads.

    Args:
        calibration: what the model's heads do (`kvbudget.calibration`). Without one, budgets come
            from the prompt's own scores alone, pooled over all heads of each layer.
        allocation: `"curves"` (water-filling on the loss curves), `"class"` (proportional to the
            weight of the head's class) or `"uniform"`.
        loss: which loss curves: `"answer"` (what the answer's likelihood loses), `"output"` (norm
            of the attention output) or `"mass"` (of attention).
        rule: a scoring rule of `kvbudget.policies.rules`, or `"per-head"`: for each head the
            rule that loses least at its budget.
        group_mix: λ in [0, 1]. Each head's scores are mixed with the mean over its group; 0 is
            independent eviction, at 1 the heads of a group rank tokens alike.
        safeguard: α in [0, 1]. Each head keeps that share of its budget; the rest is pooled over
            its group and spent by this prompt's scores (AdaKV, Feng et al., 2024). None is 1, or
            0.5 without a calibration.
        gqa: how scores of query heads are reduced to a KV head, `"max"` or `"mean"`.
        recent: tokens at the end that are always kept.
    """

    def __init__(
        self,
        calibration: dict | None,
        allocation: str,
        loss: str,
        rule: str,
        group_mix: float,
        safeguard: float | None,
        gqa: str,
        recent: int,
    ) -> None:
        if safeguard is None:
            safeguard = 0.5 if calibration is None else 1.0
        if calibration is None and rule == "per-head":
            raise UserError(
                "rule: per-head needs a calibration; make one with kvbudget calibrate, or use one "
                f"of {', '.join(RULES)}"
            )
        self.calibration, self.loss, self.rule = calibration, loss, rule
        self.allocation = allocation if calibration else "uniform"
        self.group_mix, self.safeguard, self.recent = group_mix, safeguard, recent
        self.classes = calibration and classify(
            calibration["heads"], calibration["kv_heads"], calibration["thresholds"], gqa
        )
        self.rules: list[list[str]] | None = None  # [layer][KV head], chosen with the budgets

    def budgets(self, geometry: Geometry, budget: int, prompt_tokens: int) -> list[list[int]]:
        layers, kv_heads = len(geometry.layers), geometry.kv_heads
        heads = layers * kv_heads
        tokens = max(prompt_tokens, budget)
        if self.calibration is not None and np.shape(self.classes) != (layers, kv_heads):
            raise UserError(
                f"the calibration is of a model with {np.shape(self.classes)} (layers, KV heads), "
                f"this one has {(layers, kv_heads)}; make the calibration anew for this model"
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
            weights = np.array([CLASS_WEIGHTS[name] for row in self.classes for name in row])
            spent = by_class(weights, total, floor, tokens)
        else:
            shares = np.array(self.calibration["shares"])
            losses = np.array(list(self._losses().values())).min(axis=0)
            # On few prompts a head that matters may seem not to: shrink to the mean curve.
            losses = (1 - SHRINKAGE) * losses + SHRINKAGE * losses.mean(axis=(0, 1))
            spent = water_fill(shares, losses.reshape(heads, -1), total, floor, tokens)
        spent = spent.reshape(layers, kv_heads)
        self.rules = self._choose_rules(spent, tokens)
        return spent.tolist()

    def _losses(self) -> dict[str, np.ndarray]:
        """Loss curves `(layers, kv_heads, shares)` of each rule that may be chosen."""
        curves = self.calibration["loss"].get(self.loss, {})
        names = list(curves) if self.rule == "per-head" else [self.rule]
        if not set(names) <= set(curves) or (self.rule == "per-head" and len(names) < 2):
            raise UserError(
                f"the calibration holds no {self.loss} curves of rule {self.rule!r}, only of "
                f"{', '.join(curves) or 'none'}; add rules to the calibration's answer_rules, or "
                "use the method with loss: output"
            )
        return {name: np.array(curves[name]) for name in names}

    def _choose_rules(self, budgets: np.ndarray, tokens: int) -> list[list[str]]:
        if self.rule != "per-head":
            return np.full(budgets.shape, self.rule).tolist()
        losses, shares = self._losses(), np.array(self.calibration["shares"])
        names = list(losses)
        at_budget = [
            [[np.interp(b / tokens, shares, curve) for b, curve in zip(*row, strict=True)]
             for row in zip(budgets, losses[name], strict=True)]
            for name in names
        ]  # fmt: skip
        return np.array(names)[np.argmin(at_budget, axis=0)].tolist()

    def signals(self, layer: int) -> list[Signal]:
        return [kind() for name, kind in SIGNALS.items() if name in self.rules[layer]]

    def groups(self, layer: int, kv_heads: int) -> list[list[int]]:
        """KV heads of a layer that decide together: of one class, or all without a calibration."""
        classes = self.classes[layer] if self.classes else ["all"] * kv_heads
        return [
            [head for head, name in enumerate(classes) if name == each]
            for each in dict.fromkeys(classes)
        ]

    def score_layer(self, candidates: list[Candidates]) -> list[Tensor]:
        scores = [self._own_scores(each) for each in candidates]
        if self.group_mix > 0:
            scores = self._mixed(candidates, scores)
        return [
            each.protect(own, recent=self.recent)
            for each, own in zip(candidates, scores, strict=True)
        ]

    def _own_scores(self, candidates: Candidates) -> Tensor:
        if self.rule != "per-head":
            return RULES[self.rule](candidates)
        names = [self.rules[candidates.layer][head] for head in candidates.heads]
        by_rule = {name: relative(RULES[name](candidates), candidates) for name in set(names)}
        return torch.stack([by_rule[name][:, i] for i, name in enumerate(names)], dim=1)

    def _mixed(self, candidates: list[Candidates], scores: list[Tensor]) -> list[Tensor]:
        """s' = (1-λ)·s + λ·(mean of the group); a head has no vote on a token that it evicted."""
        owner = {h: (i, j) for i, c in enumerate(candidates) for j, h in enumerate(c.heads)}
        seen = candidates[0].seen
        length = seen if isinstance(seen, int) else int(seen.max())
        mixed = [own * (1 - self.group_mix) for own in scores]
        for group in self.groups(candidates[0].layer, len(owner)):
            votes = scores[0].new_zeros(scores[0].shape[0], length)
            voters = torch.zeros_like(votes)
            for head in group:
                i, j = owner[head]
                real = (candidates[i].positions[:, j] >= 0).float()
                where = candidates[i].positions[:, j].clamp(min=0)
                votes.scatter_add_(-1, where, scores[i][:, j] * real)
                voters.scatter_add_(-1, where, real)
            mean = votes / voters.clamp(min=1)
            for head in group:
                i, j = owner[head]
                where = candidates[i].positions[:, j].clamp(min=0)
                mixed[i][:, j] += self.group_mix * mean.gather(-1, where)
        return mixed

    def redistribute(self, layer: int, scores: list[Tensor], budgets: list[int]) -> list[int]:
        return pooled(scores, budgets, self.groups(layer, len(budgets)), self.safeguard)
