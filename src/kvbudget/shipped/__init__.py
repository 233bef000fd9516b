"""Calibrations that come with the package, so that Head-Aware works at once on some models.

Each is what `kvbudget calibrate` writes, without what Head-Aware does not read, under a name that
follows from the model's weights; `kvbudget ship` puts it here. Studies do not use them: they
measure their own.
"""

import functools
import gzip
import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kvbudget.cache.samples import samples
from kvbudget.errors import UserError

#: Where they lie.
FOLDER = Path(str(importlib.resources.files(__package__)))
#: What Head-Aware reads of a calibration, loss curves and ablations aside, and of its scorer.
_KEYS = ("layers", "kv_heads", "classes", "shares")
_OF_SCORER = ("weights", "bias", "spread")


def name_of(model: PreTrainedModel) -> str:
    """What the calibration of a model is called: from 64 numbers of each parameter, in bfloat16,
    so that a model is known whether it computes in that or in float32."""
    found = hashlib.sha256()
    for name, parameter, sample in samples(model):
        found.update(f"{name} {tuple(parameter.shape)}".encode())
        found.update(sample.to(torch.bfloat16).view(torch.uint8).numpy().tobytes())
    return f"{found.hexdigest()[:16]}.json.gz"


def calibration_of(model: PreTrainedModel) -> dict | None:
    """The calibration of a model that comes with the package, always the same object; None if there
    is none. The model is looked at each time, as its weights may have changed."""
    file = FOLDER / name_of(model)
    return _read(file) if file.is_file() else None


@functools.cache
def _read(file: Path) -> dict:
    return json.loads(gzip.decompress(file.read_bytes()))


def packed(calibration: Mapping[str, Any]) -> bytes:
    """A calibration as it is shipped: the same bytes for the same calibration.

    Raises:
        UserError: it is not what `kvbudget calibrate` writes.
    """
    try:
        scorer = calibration["scorer"]["group"]
        kept: dict[str, Any] = {key: calibration[key] for key in _KEYS}
        kept["scorer"] = {"group": {key: scorer[key] for key in _OF_SCORER}}
    except KeyError as error:
        raise UserError(
            f"the calibration has no {error}; make it anew with kvbudget calibrate"
        ) from None
    return gzip.compress(json.dumps(kept, separators=(",", ":")).encode(), mtime=0)
