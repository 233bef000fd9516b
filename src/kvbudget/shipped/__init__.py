"""Calibrations that come with the package, so that Head-Aware works at once on some models.

Each is what `kvbudget calibrate` writes, without what is only told, under a name that follows from
the model's weights. Studies do not use them: they measure their own.
"""

import gzip
import hashlib
import importlib.resources
import json

import torch
from transformers import PreTrainedModel

from kvbudget.cache.samples import samples

#: What Head-Aware reads of a calibration, loss curves aside.
KEYS = ("layers", "kv_heads", "query_heads", "classes", "shares", "spread", "scorer", "calibration")


def name_of(model: PreTrainedModel) -> str:
    """What the calibration of a model is called: from 64 numbers of each parameter, in bfloat16,
    so that a model is known whether it computes in that or in float32."""
    found = hashlib.sha256()
    for name, parameter, sample in samples(model):
        found.update(f"{name} {tuple(parameter.shape)}".encode())
        found.update(sample.to(torch.bfloat16).view(torch.uint8).numpy().tobytes())
    return f"{found.hexdigest()[:16]}.json.gz"


def calibration_of(model: PreTrainedModel) -> dict | None:
    """The calibration of a model that comes with the package; None if there is none."""
    file = importlib.resources.files(__package__) / name_of(model)
    return json.loads(gzip.decompress(file.read_bytes())) if file.is_file() else None


def packed(calibration: dict) -> bytes:
    """A calibration as it is shipped: the same bytes for the same calibration."""
    kept = {key: calibration[key] for key in KEYS}
    return gzip.compress(json.dumps(kept, separators=(",", ":")).encode(), mtime=0)
