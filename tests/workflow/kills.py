"""Kill a run at random moments, and see that nothing finished is lost or spoilt."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

#: What is killed: a cell, Snakemake without its cells, or all processes of the run.
KINDS = ("cell", "snakemake", "group")


def outcome(record: str) -> str:
    """A cell's record without what differs from run to run: times, peaks of memory, and which
    contexts were adopted."""
    content = json.loads(record)
    del content["timing"], content["contexts"]
    content["memory"] = {k: v for k, v in content["memory"].items() if "peak" not in k}
    for key in ("started", "finished"):
        del content["provenance"][key]
    return json.dumps(content)


def outcomes(cells: Path) -> dict[str, str]:
    return {
        str(path.relative_to(cells)): outcome(path.read_text()) for path in cells.rglob("B*.json")
    }


def _read(path: Path) -> bytes:
    """What a file holds; nothing if it is not there, or is just being removed."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@dataclass
class Victim:
    """A study in a copy of the repository, which is run and killed.

    expected: what an undisturbed run gives, by file.
    kills: how many of each kind.
    kept: contexts of unfinished cells that were there after a kill, summed over the kills.
    lost: records, or finished contexts of a cell, that were there before a kill and not after it.
    rounds: how often the study came to its end, with results as expected, and was begun again.
    """

    repo: Path
    config: str
    targets: list[str]
    random: random.Random
    expected: dict[str, str] = field(default_factory=dict)
    kills: Counter = field(default_factory=Counter)
    kept: int = 0
    lost: int = 0
    rounds: int = 0
    process: subprocess.Popen | None = None
    finished: dict[str, tuple[bool, bytes]] = field(default_factory=dict)

    @property
    def cells(self) -> Path:
        return self.repo / "results/cells"

    def start(self) -> None:
        """In a process group of its own, as from a shell."""
        command = [sys.executable, "-m", "snakemake", "--configfile", self.config]
        if any((self.repo / ".snakemake/locks").glob("*")):
            subprocess.run([*command, "--unlock"], cwd=self.repo, capture_output=True, check=True)
        with (self.repo / "snakemake.out").open("w") as out:
            self.process = subprocess.Popen(
                [*command, "--resources", "gpu=2", "--cores", "2", "--", *self.targets],
                cwd=self.repo,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def measuring(self) -> list[psutil.Process]:
        """The processes of cells, also of those that outlived their run."""
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                ours = "kvbudget" in words and "cell" in words and "lease" not in words
                if ours and process.cwd() == str(self.repo):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def disturb(self, kinds: list[str], longest: float) -> None:
        """Kill these one after the other, each at a random moment of at most so many seconds."""
        for kind in kinds:
            while not self._strike(kind, longest):
                continue
            self.kills[kind] += 1
            self.look()
            left = (lines for done, lines in self.finished.values() if not done)
            self.kept += sum(max(lines.count(b"\n") - 1, 0) for lines in left)

    def _strike(self, kind: str, longest: float) -> bool:
        if not self.running():
            if all((self.repo / target).exists() for target in self.targets):
                assert outcomes(self.cells) == self.expected
                self.rounds += 1
                self.wipe()
            self.start()
        time.sleep(self.random.uniform(0, longest))
        if kind == "cell":
            if not (measuring := self.measuring()):
                return False
            self.random.choice(measuring).kill()
        elif not self.running():
            return False
        elif kind == "snakemake":
            self.process.kill()
            self.process.wait()
        else:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        return True

    def look(self) -> None:
        """Every record on disk is whole, and what was finished at the last look still is."""
        now = {}
        for target in self.targets:
            # In this order: the side file goes after the record has come.
            lines = _read((self.repo / target).with_suffix(".contexts.jsonl"))
            record = _read(self.repo / target)
            if record:
                outcome(record.decode())  # raises if it is not whole
            now[target] = (bool(record), lines[: lines.rfind(b"\n") + 1])
        for target, (was_done, before) in self.finished.items():
            done, lines = now[target]
            # The record of a job that Snakemake saw fail goes; it is made again from its contexts.
            kept = lines.startswith(before) and (before or not was_done)
            self.lost += not (done or kept)
        self.finished = now

    def finish(self) -> None:
        """Let a run come to its end, undisturbed."""
        if self.running():
            self.process.wait()
        self.start()
        assert self.process.wait() == 0, (self.repo / "snakemake.out").read_text()
        self.look()

    def wipe(self) -> None:
        for process in self.measuring():
            process.kill()
            process.wait()
        shutil.rmtree(self.cells)
        self.finished = {}

    def stop(self) -> None:
        if self.running():
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for process in self.measuring():
            process.kill()
