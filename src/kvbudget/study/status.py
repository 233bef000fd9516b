"""How far a study is. Reads what is on disk and changes nothing, so it may be asked at any time,
during a run or after."""

import datetime
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from kvbudget.study import failures
from kvbudget.study.plan import Planned, Study


@dataclass(frozen=True)
class Progress:
    """A cell of the plan as it stands on disk.

    finished: contexts that need not be read again.
    seconds: that the cell took; None unless it is done.
    """

    cell: Planned
    finished: int
    seconds: float | None

    @property
    def contexts(self) -> int:
        return self.cell.spec["samples"]["contexts"]

    @property
    def tokens(self) -> int:
        """The cell's work, by which those that are left are compared with those that are done."""
        return self.cell.length * self.contexts


def progress(study: Study, cell: Planned) -> Progress:
    """A cell of a study as it stands on disk."""
    file = study.root / cell.path
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        side = file.with_suffix(".contexts.jsonl")
        # The first line names the cell.
        finished = side.read_bytes().count(b"\n") - 1 if side.exists() else 0
        return Progress(cell, max(finished, 0), None)
    times = (record["provenance"][key] for key in ("started", "finished"))
    started, finished = map(datetime.datetime.fromisoformat, times)
    return Progress(cell, cell.spec["samples"]["contexts"], (finished - started).total_seconds())


def describe(name: str, cells: list[Progress], failed: Collection[str]) -> str:
    """The state of a study in a few lines; `failed` are paths of outputs."""
    done = [each for each in cells if each.seconds is not None]
    left = [each for each in cells if each.seconds is None]
    broken = [each.cell.path for each in left if each.cell.path in failed]
    lines = [
        f"study {name}: {len(done)} of {len(cells)} cells done, {len(broken)} failed,"
        f" {len(left) - len(broken)} left"
    ]
    if left and done:
        pace = sum(each.seconds for each in done) / sum(each.tokens for each in done)
        unread = sum(each.tokens * (1 - each.finished / each.contexts) for each in left)
        ahead = datetime.timedelta(seconds=round(pace * unread))
        lines.append(f"about {ahead} to go at the pace of those, one cell at a time")
    lines += [f"failed: {path}" for path in broken]
    lines += [
        f"begun: {each.cell.path}, {each.finished} of {each.contexts} contexts"
        for each in left
        if each.finished and each.cell.path not in failed
    ]
    return "\n".join(lines)


def failed_outputs(logs: Path) -> list[str]:
    """Outputs of the jobs that failed in the run that was started last."""
    newest = max(logs.glob("*.snakemake.log"), default=None)  # names begin with the time
    if newest is None:
        return []
    return [each.output for each in failures.find(newest.read_text(errors="replace"))]


def report(study: Study) -> str:
    """The state of a study in a few lines."""
    cells = [progress(study, cell) for cell in study.cells]
    return describe(study.name, cells, failed_outputs(study.root / ".snakemake/log"))
