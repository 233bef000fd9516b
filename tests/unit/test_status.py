"""How far a study is, from what lies on disk."""

import io
import json
import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

from kvbudget.cli import status as command
from kvbudget.study import running, status
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


TIMES = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:01:00+00:00"}


def finish(study: Study, method: str) -> None:
    """Leave the record of a cell that took a minute."""
    write(study.root, path(method), json.dumps({"provenance": TIMES}))


def hear(study: Study, method: str, at: float) -> None:
    """Leave the log of a cell, last written at a time."""
    log = path(method).replace("results/", "results/s/logs/").replace(".json", ".log")
    write(study.root, log, "")
    os.utime(study.root / log, (at, at))


@pytest.fixture
def run(study):
    """A process that runs the study, until it is killed."""
    code = (
        "import pathlib, sys, time; from kvbudget.study import running;"
        "from kvbudget.study.plan import Study;"
        f"running.hold(Study('s', {{}}, (), root=pathlib.Path({str(study.root)!r})));"
        "print('on', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def report(study: Study) -> list[str]:
    return status.report(study).splitlines()


def test_nothing_is_known_of_the_time_before_a_cell_is_done(study):
    assert report(study) == [
        "study s: 0 of 4 cells done, 0 failed, 4 left",
        f"begun: {path('begun')}, 1 of 4 contexts",
    ]


def test_cells_done_failed_and_left_and_the_time_to_go(study):
    finish(study, "done")
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


def test_a_run_is_going_on_until_it_is_killed(study, run):
    assert running.began(study) == pytest.approx(time.time(), abs=60)
    run.kill()
    run.wait()
    assert running.began(study) is None


def test_what_was_never_run_is_not_running(study):
    assert running.began(study) is None


def test_one_line_tells_what_is_being_measured_now(study, run):
    began = running.began(study)
    finish(study, "done")
    hear(study, "done", began + 3)
    hear(study, "begun", began + 2)
    hear(study, "failed", began + 1)
    hear(study, "left", began - 9)  # by an earlier run
    assert status.Watch(study).look().line() == (
        "1 of 4 cells done, 0 failed, 3 left, about 0:03:45 to go;"
        " m/t/L100/begun/Bfull: context 2 of 4, and 1 more"
    )


def test_between_runs_nothing_is_being_measured(study):
    hear(study, "begun", time.time())
    assert status.Watch(study).look().line() == "0 of 4 cells done, 0 failed, 4 left"


def test_a_watch_tells_each_change_once_and_ends_with_the_run(study, run, capsys):
    watch = status.Watch(study)
    looks = watch.changes(0.01)
    assert len(next(looks).done) == 0
    finish(study, "done")
    assert len(next(looks).done) == 1
    run.kill()
    run.wait()
    assert list(looks) == []
    finish(study, "left")
    command._plain(watch, 0.01)
    assert capsys.readouterr().out == "2 of 4 cells done, 0 failed, 2 left, about 0:01:10 to go\n"


def test_a_terminal_has_a_bar_of_contexts_above_the_line(study):
    finish(study, "done")
    screen = io.StringIO()
    console = Console(file=screen, width=120, force_terminal=True, color_system=None)
    console.print(command._drawn(status.Watch(study).look()))
    bar, line = screen.getvalue().splitlines()
    assert len(bar.strip()) == 19  # 5 of 16 contexts, of 60 places
    assert line.startswith("1 of 4 cells done")


def test_a_study_that_is_not_there(tmp_path):
    command = [sys.executable, "-m", "kvbudget", "status", "mine"]
    asked = subprocess.run(command, capture_output=True, text=True)
    assert asked.returncode == 2
    assert asked.stderr.startswith("error: there is no study 'mine'")


def test_windows_tells_how_far_a_study_is(study, monkeypatch):
    """Records that were measured elsewhere may lie there; no run can go on."""
    running.hold(study)
    finish(study, "done")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert running.began(study) is None
    assert status.report(study).startswith("study s: 1 of 4 cells done")
