"""Files on disk, written whole or not at all. Imports no torch: plans are written by it too."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: dict[str, Any], indent: int | None = None) -> None:
    """Write what holds nothing but finite numbers and text, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(content, allow_nan=False, indent=indent) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Give a file other contents in one step, so that no partial one is ever found.

    The temporary file is this process's own: a cell that outlived a killed run may write the same
    record at the same time.
    """
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
