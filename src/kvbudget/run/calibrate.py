"""One calibration: a model, a text and a spec in; one JSON record out."""

import time
from dataclasses import dataclass
from pathlib import Path

from kvbudget.api import attach
from kvbudget.calibration.calibrate import calibrate
from kvbudget.calibration.options import OPTIONS
from kvbudget.options import filled
from kvbudget.run.files import write_json
from kvbudget.run.job import Job
from kvbudget.run.record import provenance
from kvbudget.sources.haystack import read_passages
from kvbudget.sources.load import load
from kvbudget.sources.verified import read as read_verified


@dataclass(frozen=True, kw_only=True)
class Calibration(Job):
    """What a calibration is made from; its spec has all options, and the key of the haystack.

    Attributes:
        model: its key.
        code: digest of the code that makes it.
        identity: digest of all that it depends on: spec, code, model and text.
    """

    model: str
    code: str
    identity: str


def calibrate_model(directory: Path, text: Path, spec: dict) -> dict:
    """A calibration of the model in a directory, on a haystack.

    Args:
        spec: overrides the defaults of `kvbudget.calibration.options`.

    Raises:
        UserError: an option that is not there, or a model or a text that cannot be read.
    """
    spec = filled("calibration", spec, OPTIONS)
    model, tokenizer = load(directory, spec["dtype"])
    return calibrate(attach(model), tokenizer, read_passages(text), spec)


def run_calibration(job: Calibration) -> None:
    """Calibrate a model's heads and write the record."""
    started = time.time()
    sha256 = read_verified(job.verified, job.model_identity)["sha256"]
    model, tokenizer = load(job.model_dir, job.spec["dtype"])
    spec = {key: value for key, value in job.spec.items() if key in OPTIONS}
    calibration = calibrate(attach(model), tokenizer, read_passages(job.text), spec)
    write_json(
        job.out,
        {
            "schema": 1,
            "identity": job.identity,
            "model": job.model,
            "model_sha256": sha256,
            "spec": job.spec,
            "code": job.code,
            **calibration,
            "provenance": provenance(model, sha256, started),
        },
    )
