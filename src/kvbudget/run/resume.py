"""Contexts that an interrupted run of a cell has finished: a side file, a line each."""

import json
from pathlib import Path

from kvbudget.run.record import replace_text


def finished(side: Path, identity: str) -> list[dict]:
    """Contexts that an earlier, interrupted run of the same cell has finished.

    The first line of the side file is the identity of the cell that it belongs to. What follows a
    line that was cut off by a kill is dropped. The side file is made anew, so that a process of the
    killed run that is still alive goes on writing into the old one, which no one reads.
    """
    head, done = {"identity": identity}, []
    try:
        lines = side.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line) if line.endswith("\n") else None
        except json.JSONDecodeError:
            entry = None
        if entry is None or (number == 0 and entry != head):
            break
        if number:
            done.append(entry)
    side.parent.mkdir(parents=True, exist_ok=True)
    replace_text(side, "".join(json.dumps(entry) + "\n" for entry in [head, *done]))
    return done
