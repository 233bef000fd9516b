"""One calibration: a model, a text and a spec in; one JSON record out."""

import json
import time
from pathlib import Path

from kvbudget.api import attach
from kvbudget.calibration.calibrate import calibrate
from kvbudget.run.record import provenance, write_json
from kvbudget.sources.haystack import read_passages
from kvbudget.sources.load import load


def run_calibration(
    model: str, spec: dict, code: str, model_dir: Path, verified: Path, text: Path, out: Path
) -> None:
    """Calibrate a model's heads and write the record.

    Args:
        model: its key.
        spec: overrides `kvbudget.calibration.calibrate.DEFAULTS`.
        code: digest of the code behind it.
        model_dir: where the model lies.
        verified: what its check has found.
        text: the haystack.
        out: the record.
    """
    started = time.time()
    loaded, tokenizer = load(model_dir, {**DEFAULTS, **spec}["dtype"])
    sha256 = json.loads(verified.read_text())["sha256"]
    calibration = calibrate(attach(loaded), tokenizer, read_passages(text), spec)
    write_json(
        out,
        {
            "schema": 1,
            "model": model,
            "model_sha256": sha256,
            "spec": spec,
            "code": code,
            **calibration,
            "provenance": provenance(loaded, sha256, started),
        },
    )
