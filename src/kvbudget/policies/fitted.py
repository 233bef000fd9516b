"""What a calibration holds for Head-Aware, ready to compute with: read once, not at each cache."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from kvbudget.errors import UserError
from kvbudget.policies.predicted import Scorer
from kvbudget.policies.registry import HIDDEN_MAPS

_REMEDY = "make it anew with kvbudget calibrate"


class Fitted:
    """A calibration of a model's heads.

    What is in it is looked at when it is asked for, as which part a cache needs depends on its
    options.

    Args:
        record: as `kvbudget calibrate` writes it; not to be changed afterwards.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record
        self._scorers: dict[str, list[Scorer]] = {}

    def check(self, layers: int, kv_heads: int) -> None:
        """Raise UserError unless it is of a model with so many full-attention layers and KV heads a
        layer."""
        found = (len(self._part("layers")), self._part("kv_heads"))
        if found != (layers, kv_heads):
            raise UserError(
                f"the calibration is of a model with {found} (layers, KV heads), this one has "
                f"{(layers, kv_heads)}; make the calibration anew for this model"
            )

    def scorers(self, features: str) -> list[Scorer]:
        """The maps that predict scores, a layer each.

        Args:
            features: `"group"`, `"own"` or `"hidden"`, see `kvbudget.policies.predicted`; or
                `"kvzap"`, see `kvbudget.policies.kvzap`.

        Raises:
            UserError: it holds none of these features.
        """
        if features not in self._scorers:
            found = self._map(features)
            pairs = zip(found["weights"], found["bias"], strict=True)
            made = [Scorer(torch.tensor(weights), torch.tensor(bias)) for weights, bias in pairs]
            self._scorers[features] = made
        return self._scorers[features]

    @property
    def classes(self) -> list[str]:
        """What each KV head does, layer after layer."""
        return [name for row in self._part("classes") for name in row]

    def spread(self, features: str) -> Callable[[float], np.ndarray]:
        """From the share of typical text that all heads together keep by predicted scores to what
        each head keeps, `(heads,)`."""
        shares = self._part("shares")
        rows = np.array(self._map(features)["spread"]).reshape(-1, len(shares))
        return lambda share: np.array([np.interp(share, shares, row) for row in rows])

    def losses(self, kind: str, rule: str) -> tuple[np.ndarray, np.ndarray]:
        """Shares of tokens, and what each head loses that keeps so many by a rule, `(points,)` and
        `(heads, points)`.

        Raises:
            UserError: it holds no such curves.
        """
        curves = self.record.get("loss", {}).get(kind, {})
        if rule not in curves:
            raise UserError(
                f"the calibration holds no {kind} curves of rule {rule!r}, only of "
                f"{', '.join(curves) or 'none'}; add the rule to the calibration's answer_rules, "
                "or use the method with loss: output, or with another rule or allocation"
            )
        shares = np.array(self._part("shares"))
        return shares, np.array(curves[rule]).reshape(-1, len(shares))

    def _map(self, features: str) -> Mapping[str, Any]:
        maps = self._part("scorer")
        if features not in maps:
            remedy = f", hidden_maps: [{features}]" if features in HIDDEN_MAPS else ""
            raise UserError(
                f"the calibration has no scorer of features {features!r}; {_REMEDY}{remedy}"
            )
        return maps[features]

    def _part(self, key: str) -> Any:
        if key not in self.record:
            raise UserError(f"the calibration has no {key!r}; {_REMEDY}")
        return self.record[key]
