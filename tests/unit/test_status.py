"""How far a study is, from what lies on disk."""

import json
import subprocess
import sys

import pytest

CODE = "c0de"


def spec(method: str, length: int) -> dict:
    return {
        "model": "m",
        "task": {"name": "t", "kind": "niah"},
        "length": length,
        "method": {"name": method, "policy": method},
        "budget": None,
        "samples": {"contexts": 4, "questions": 1},
    }


def path(method: str) -> str:
    return f"results/s/cells/m/t/L100/{method}/Bfull.json"


def write(root, file: str, text: str) -> None:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)


@pytest.fixture
def study(tmp_path):
    """Four cells, each but the last of 400 tokens to read."""
    lengths = {"done": 100, "begun": 100, "failed": 100, "left": 200}
    cells = [
        {"path": path(m), "spec": spec(m, n), "code": CODE, "experiments": ["e"]}
        for m, n in lengths.items()
    ]
    plan = {"study": "s", "config": {}, "cells": cells}
    write(tmp_path, "results/s/study.json", json.dumps(plan))
    write(
        tmp_path,
        path("begun").replace(".json", ".contexts.jsonl"),
        '{"spec": 1}\n{"samples": []}\n{"sam',
    )
    return tmp_path


def finish(root, method: str, code: str = CODE) -> None:
    times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:01:00+00:00"}
    record = {"spec": spec(method, 100), "code": code, "provenance": times}
    write(root, path(method), json.dumps(record))


def status(root) -> list[str]:
    command = [sys.executable, "-m", "kvbudget.study.status", "--study", "results/s/study.json"]
    return subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_nothing_is_known_of_the_time_before_a_cell_is_done(study):
    assert status(study) == [
        "study s: 0 of 4 cells done, 0 failed, 4 left",
        f"begun: {path('begun')}, 1 of 4 contexts",
    ]


def test_cells_done_failed_and_left_and_the_time_to_go(study):
    finish(study, "done")
    error = f"Error in rule cell:\n    jobid: 1\n    output: {path('failed')}\n"
    write(study, ".snakemake/log/2026-01-02T000000.000001.snakemake.log", error)
    write(study, ".snakemake/log/2026-01-01T000000.000001.snakemake.log", "of another run")
    # A minute for 400 tokens; 300 are left of the cell that was begun, 400 and 800 of the others.
    assert status(study) == [
        "study s: 1 of 4 cells done, 1 failed, 2 left",
        "about 0:03:45 to go at the pace of those, one cell at a time",
        f"failed: {path('failed')}",
        f"begun: {path('begun')}, 1 of 4 contexts",
    ]


def test_a_record_of_other_code_is_not_done(study):
    finish(study, "done", code="0ther")
    assert status(study)[0] == "study s: 0 of 4 cells done, 0 failed, 4 left"


def test_a_study_that_was_never_started(tmp_path):
    command = [sys.executable, "-m", "kvbudget.study.status", "--study", "results/s/study.json"]
    asked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert asked.returncode == 2
    assert asked.stderr.startswith("error: cannot read the plan results/s/study.json")
