"""The peers' environment, for tests that need it: where it is, and how it is asked."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from kvbudget.run.peers.environment import GIVEN

ROOT = Path(__file__).resolve().parents[2]


def required() -> Path:
    """The Python that has kvpress; without it the module's tests are skipped."""
    python = Path(os.environ.get(GIVEN, ROOT / ".venv-peers/bin/python"))
    if not python.exists():
        pytest.skip("kvpress is not there; make peers installs it", allow_module_level=True)
    return python


def ask(python: Path, model: Path, asked: list[dict]) -> list[dict]:
    """The result of each press on a context: `asked` has their other parts of a request."""
    return [result for (result,) in ask_all(python, model, asked)]


def ask_all(python: Path, model: Path, asked: list[dict]) -> list[list[dict]]:
    """The results of each press on its contexts."""
    requests = [
        {"model_dir": str(model), "dtype": "float32", "device": "cpu", "threads": 1, **each}
        for each in asked
    ]
    done = subprocess.run(
        [python, Path(__file__).with_name("presses.py")],
        input=json.dumps(requests),
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [results for _, *results in json.loads(done.stdout)]
