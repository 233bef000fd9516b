"""How far a study is. Reads what is on disk and changes nothing, so it may be asked at any time,
during a run or after."""

import datetime
import json
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kvbudget.study import failures, running
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


@dataclass(frozen=True)
class State:
    """A study at one moment.

    Attributes:
        name: of the study.
        cells: all of the plan.
        failed: paths of the outputs of jobs that failed.
        now: cells that are being measured, the one heard of last first.
    """

    name: str
    cells: tuple[Progress, ...]
    failed: frozenset[str]
    now: tuple[Progress, ...] = ()

    @cached_property
    def done(self) -> list[Progress]:
        return [each for each in self.cells if each.seconds is not None]

    @cached_property
    def undone(self) -> list[Progress]:
        return [each for each in self.cells if each.seconds is None]

    @cached_property
    def broken(self) -> list[Progress]:
        return [each for each in self.undone if each.cell.path in self.failed]

    @property
    def counts(self) -> str:
        """Cells done, failed and left, in words."""
        left = len(self.undone) - len(self.broken)
        return (
            f"{len(self.done)} of {len(self.cells)} cells done, {len(self.broken)} failed,"
            f" {left} left"
        )

    @cached_property
    def ahead(self) -> datetime.timedelta | None:
        """Time to go at the pace of the cells that are done, one at a time; None if none is."""
        if not (self.undone and self.done):
            return None
        pace = sum(each.seconds for each in self.done) / sum(each.tokens for each in self.done)
        unread = sum(each.tokens * (1 - each.finished / each.contexts) for each in self.undone)
        return datetime.timedelta(seconds=round(pace * unread))

    @property
    def contexts(self) -> tuple[int, int]:
        """Contexts that are finished, and all."""
        finished = sum(each.finished for each in self.cells)
        return finished, sum(each.contexts for each in self.cells)

    def line(self) -> str:
        """All that changes during a run, in one line."""
        parts = [self.counts + (f", about {self.ahead} to go" if self.ahead else "")]
        if self.now:
            first = self.now[0]
            *_, method, budget = first.cell.key
            place = f"{first.cell.model}/{first.cell.task}/L{first.cell.length}/{method}/B{budget}"
            number = min(first.finished + 1, first.contexts)
            more = f", and {len(self.now) - 1} more" if len(self.now) > 1 else ""
            parts.append(f"{place}: context {number} of {first.contexts}{more}")
        return "; ".join(parts)

    def report(self) -> str:
        """All that there is to tell, in a few lines."""
        lines = [f"study {self.name}: {self.counts}"]
        if self.ahead is not None:
            lines.append(f"about {self.ahead} to go at the pace of those, one cell at a time")
        lines += [f"failed: {each.cell.path}" for each in self.broken]
        lines += [
            f"begun: {each.cell.path}, {each.finished} of {each.contexts} contexts"
            for each in self.undone
            if each.finished and each not in self.broken
        ]
        return "\n".join(lines)


class Watch:
    """Looks at a study again and again; a cell that was done is not read a second time."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._done: dict[str, Progress] = {}

    def look(self) -> State:
        """The study as it stands now."""
        cells = tuple(self._of(cell) for cell in self.study.cells)
        failed = frozenset(failed_outputs(self.study.root / ".snakemake/log"))
        began = running.began(self.study)
        now = () if began is None else tuple(self._now(cells, failed, began))
        return State(self.study.name, cells, failed, now)

    def changes(self, seconds: float) -> Iterator[State]:
        """The study now, and whenever it has changed, until no run is going on."""
        before = None
        while True:
            going_on = running.began(self.study) is not None
            state = self.look()
            if state != before:
                yield state
            if not going_on:
                return
            before = state
            time.sleep(seconds)

    def _of(self, cell: Planned) -> Progress:
        if cell.path not in self._done:
            found = progress(self.study, cell)
            if found.seconds is None:
                return found
            self._done[cell.path] = found
        return self._done[cell.path]

    def _now(
        self, cells: Collection[Progress], failed: Collection[str], began: float
    ) -> list[Progress]:
        """Cells without a record whose logs were written since the run began, the latest first."""
        logs = self.study.root / self.study.directory / "logs"
        heard = []
        for number, each in enumerate(cells):
            log = logs / Path(each.cell.path).relative_to("results").with_suffix(".log")
            if each.seconds is None and each.cell.path not in failed and log.exists():
                heard.append((log.stat().st_mtime, number, each))
        return [each for at, _, each in sorted(heard, reverse=True) if at >= began]


def failed_outputs(logs: Path) -> list[str]:
    """Outputs of the jobs that failed in the run that was started last. A job that was killed
    leaves no error in a log of its own, so Snakemake's tells."""
    newest = max(logs.glob("*.snakemake.log"), default=None)  # names begin with the time
    if newest is None:
        return []
    return [each.output for each in failures.find(newest.read_text(errors="replace"))]


def report(study: Study) -> str:
    """The state of a study in a few lines."""
    return Watch(study).look().report()
