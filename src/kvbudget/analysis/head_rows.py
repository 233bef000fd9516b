"""heads.csv, loss_curves.csv, stability.csv, scorer.csv, ranks.csv and allocation.csv: what heads
do, how well their scores are predicted, and where budgets go."""

import json
import math
import shlex

import numpy as np
import pandas as pd

from kvbudget.analysis.measured import Measured
from kvbudget.errors import UserError
from kvbudget.study.plan import OURS, Study

SIGNALS = ("retrieval", "induction", "local", "sink", "previous")


def load_calibrations(study: Study) -> dict[str, dict]:
    """The plan's own calibration of each model, by key; one that no method uses is left out.

    Of several seeds, the first.

    Raises:
        UserError: a calibration is not JSON or holds a number that is not finite.
    """
    found = {}
    for planned in study.calibrations:
        path = study.root / planned.path
        if not planned.own or planned.model in found or not path.exists():
            continue
        try:
            calibration = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise _bad(study, planned.path, f"not JSON ({error})") from error
        told = (calibration["heads"], calibration["loss"], calibration["scorer"])
        if not _finite(list(told)):
            raise _bad(study, planned.path, "holds a number that is not finite")
        found[planned.model] = calibration
    return found


def _bad(study: Study, path: str, reason: str) -> UserError:
    return UserError(
        f"calibration {path}: {reason}; make it again with\n"
        f"  rm {shlex.quote(path)} && {study.run([path])}"
    )


def _finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def head_rows(calibrations: dict[str, dict]) -> pd.DataFrame:
    """One row a query head."""
    rows = []
    for model, calibration in calibrations.items():
        group = calibration["query_heads"] // calibration["kv_heads"]
        for i, layer in enumerate(calibration["layers"]):
            for head in range(calibration["query_heads"]):
                row = {"model": model, "layer": layer, "query_head": head, "kv_head": head // group}
                row["class"] = calibration["classes"][i][head // group]
                row |= {name: calibration["heads"][name][i][head] for name in SIGNALS}
                rows.append(row)
    return pd.DataFrame(rows)


def loss_rows(calibrations: dict[str, dict]) -> pd.DataFrame:
    """One row a point of a KV head's loss curve."""
    return pd.DataFrame(
        {
            "model": model,
            "measure": measure,
            "rule": rule,
            "layer": layer,
            "kv_head": head,
            "class": calibration["classes"][i][head],
            "share": share,
            "loss": loss,
        }
        for model, calibration in calibrations.items()
        for measure, rules in calibration["loss"].items()
        for rule, curves in rules.items()
        for i, layer in enumerate(calibration["layers"])
        for head in range(calibration["kv_heads"])
        for share, loss in zip(calibration["shares"], curves[i][head], strict=True)
    )


def stability_rows(calibrations: dict[str, dict]) -> pd.DataFrame:
    """One row a signal: whether two halves of the calibration see the same heads in front."""
    return pd.DataFrame(
        {"model": model, "signal": signal, "correlation": correlation}
        for model, calibration in calibrations.items()
        for signal, correlation in calibration["stability"].items()
    )


def scorer_rows(calibrations: dict[str, dict]) -> pd.DataFrame:
    """One row a share of tokens: what the predicted best hold of what the truly best hold."""
    return pd.DataFrame(
        {
            "model": model,
            "features": features,
            "share": float(share.rstrip("%")) / 100,
            "kept": kept,
        }
        for model, calibration in calibrations.items()
        for features, fitted in calibration["scorer"].items()
        for share, kept in fitted["kept"].items()
    )


def rank_rows(calibrations: dict[str, dict]) -> pd.DataFrame:
    """One row a KV head: how well its tokens are ranked."""
    return pd.DataFrame(
        {
            "model": model,
            "features": features,
            "layer": layer,
            "kv_head": head,
            "correlation": correlation,
        }
        for model, calibration in calibrations.items()
        for features, fitted in calibration["scorer"].items()
        for layer, heads in zip(calibration["layers"], fitted["ranks"], strict=True)
        for head, correlation in enumerate(heads)
    )


def allocation_rows(groups: list[Measured], calibrations: dict[str, dict]) -> pd.DataFrame:
    """One row a KV head of each cell of our policy; other policies keep the same in each head.

    Of several seeds of a calibration, the first is told, as classes of heads are of one.
    """
    rows = []
    for each in groups:
        cell = each.cells[0]
        if cell.planned.policy != OURS:
            continue
        allocation = cell.record["allocation"]
        axes = cell.planned.axes | {"all_kept": each.all_kept}
        calibration = calibrations.get(cell.planned.model)
        classes = _classes(calibration) if calibration else {}
        mean = float(np.mean([slots for heads in allocation["slots"] for slots in heads]))
        for layer, heads in zip(allocation["layers"], allocation["slots"], strict=True):
            for head, slots in enumerate(heads):
                functional = classes[layer][head] if layer in classes else ""
                row = {**axes, "layer": layer, "kv_head": head, "class": functional}
                rows.append(row | {"slots": slots, "share": slots / mean})
    return pd.DataFrame(rows)


def _classes(calibration: dict) -> dict[int, list[str]]:
    return dict(zip(calibration["layers"], calibration["classes"], strict=True))
