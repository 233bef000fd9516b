"""How far a study is, from what lies on disk."""

import json
import subprocess
import sys

import pytest

from kvbudget.study import status
from kvbudget.study.plan import Planned, Study

LENGTHS = {"done": 100, "begun": 100, "failed": 100, "left": 200}


def cell(method: str) -> Planned:
    spec = {
        "model": "m",
        "task": {"name": "t", "kind": "niah"},
        "length": LENGTHS[method],
        "method": {"name": method, "policy": method},
        "budget": None,
        "samples": {"contexts": 4, "questions": 1},
    }
    return Planned(spec, "c0de", "1d" * 32, "results/text/h-1.txt", None, ("e",))


def path(method: str) -> str:
    return cell(method).path


def write(root, file: str, text: str) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)


@pytest.fixture
def study(tmp_path) -> Study:
    """Four cells, each but the last of 400 tokens to read."""
    write(
        tmp_path,
        path("begun").replace(".json", ".contexts.jsonl"),
        '{"spec": 1}\n{"samples": []}\n{"sam',
    )
    return Study("s", {}, tuple(map(cell, LENGTHS)), root=tmp_path)


def report(study: Study) -> list[str]:
    return status.report(study).splitlines()


def test_nothing_is_known_of_the_time_before_a_cell_is_done(study):
    assert report(study) == [
        "study s: 0 of 4 cells done, 0 failed, 4 left",
        f"begun: {path('begun')}, 1 of 4 contexts",
    ]


def test_cells_done_failed_and_left_and_the_time_to_go(study):
    times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:01:00+00:00"}
    write(study.root, path("done"), json.dumps({"provenance": times}))
    error = f"Error in rule cell:\n    jobid: 1\n    output: {path('failed')}\n"
    logs = ".snakemake/log"
    write(study.root, f"{logs}/2026-01-02T000000.000001.snakemake.log", error)
    write(study.root, f"{logs}/2026-01-01T000000.000001.snakemake.log", "of another run")
    # A minute for 400 tokens; 300 are left of the cell that was begun, 400 and 800 of the others.
    assert report(study) == [
        "study s: 1 of 4 cells done, 1 failed, 2 left",
        "about 0:03:45 to go at the pace of those, one cell at a time",
        f"failed: {path('failed')}",
        f"begun: {path('begun')}, 1 of 4 contexts",
    ]


def test_a_study_that_is_not_there(tmp_path):
    command = [sys.executable, "-m", "kvbudget", "status", "mine"]
    asked = subprocess.run(command, capture_output=True, text=True)
    assert asked.returncode == 2
    assert asked.stderr.startswith("error: there is no study 'mine'")
