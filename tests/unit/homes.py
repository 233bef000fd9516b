"""Where tests measure cells: a tiny model, verified, a text, and what a cell is measured from."""

import json
from pathlib import Path

from kvbudget.run.job import Cell
from kvbudget.sources import integrity
from kvbudget.sources.download import download
from kvbudget.sources.registry import Random
from kvbudget.sources.text import build

LICENSE = Path(__file__).parents[2] / "LICENSE"


def with_model(home: Path) -> Path:
    """A folder with a tiny model and its check."""
    download("tiny", Random(), home / "tiny")
    verified = integrity.verify("tiny", home / "tiny", home / "lock.yaml")
    (home / "tiny.verified.json").write_text(json.dumps(verified | {"identity": "model"}))
    return home


def with_text(home: Path) -> Path:
    """The same with a haystack."""
    build({"source": "file", "path": str(LICENSE)}, with_model(home) / "text.txt")
    return home


def cell(home: Path, out: Path, spec: dict, calibration: Path | None = None) -> Cell:
    """A cell of that model and text."""
    return Cell(
        spec=spec,
        code="digest",
        identity="identity",
        model_identity="model",
        model_dir=home / "tiny",
        verified=home / "tiny.verified.json",
        text=home / "text.txt",
        calibration=calibration,
        out=out,
    )
