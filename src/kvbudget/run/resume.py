"""Contexts that an interrupted run of a cell has finished: a side file, a line each."""

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kvbudget.run.files import replace_text


def finished(side: Path, basis: dict[str, Any]) -> list[dict]:
    """Contexts that an earlier, interrupted run of the same cell has finished.

    The first line of the side file is what its contexts rest on (`basis`): identity of the cell,
    calibration, machine. If that is another, nothing is taken, and it is said: a record must not
    mix what two machines or calibrations gave. What follows a line that was cut off by a kill is
    dropped. The side file is made anew, so that a process of the killed run that is still alive
    goes on writing into the old one, which no one reads.
    """
    done = []
    try:
        lines = side.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line) if line.endswith("\n") else None
        except json.JSONDecodeError:
            entry = None
        if entry is None:
            break
        if number == 0 and entry != basis:
            _say(side, entry, basis)
            break
        if number:
            done.append(entry)
    side.parent.mkdir(parents=True, exist_ok=True)
    replace_text(side, "".join(json.dumps(entry) + "\n" for entry in [basis, *done]))
    return done


def _say(side: Path, found: dict[str, Any], basis: dict[str, Any]) -> None:
    """Why contexts that are there are measured again."""
    other = [
        f"{key} {found.get(key)}, not {value}"
        for key, value in basis.items()
        if found.get(key) != value
    ]
    tqdm.write(f"{side.name} rests on {'; '.join(other)}: all contexts are measured again")
