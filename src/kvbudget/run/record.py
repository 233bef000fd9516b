"""What a record says of where it comes from: code, model and machine."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path

from transformers import PreTrainedModel

from kvbudget.run.job import Cell
from kvbudget.run.machine import machine
from kvbudget.sources.digest import file_sha256

LIBRARIES = ("torch", "transformers", "numpy", "safetensors", "tokenizers")


def provenance(model: PreTrainedModel, model_sha256: str, started: float) -> dict:
    """What a result was made with, and when: versions, model, machine, dtype, commit."""
    return {
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES}
        | {"python": platform.python_version()},
        "model_sha256": model_sha256,
        **machine(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        **made(started),
    }


def record_of(cell: Cell, measured: dict, provenance: dict) -> dict:
    """The record of a cell, from what was measured and what it was measured with.

    Measurements at the same time on one device disturb each other: then it has no times.
    """
    if provenance["at_once"] > 1:
        measured = measured | {"timing": dict.fromkeys(measured["timing"])}
    return {
        "schema": 1,
        "identity": cell.identity,
        "spec": cell.spec,
        "code": cell.code,
        **measured,
        "provenance": provenance | {"text_sha256": file_sha256(cell.text)},
    }


def made(started: float) -> dict:
    """By which commit a result was made, and when."""
    return {
        "git_commit": _git_commit(),
        "started": _iso(started),
        "finished": _iso(datetime.datetime.now().timestamp()),
    }


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _git_commit() -> str | None:
    """The commit of the working tree, marked `-dirty` if it was edited; None outside of git."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, timeout=10, cwd=Path(__file__).parent, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
