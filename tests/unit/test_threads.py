"""How many processors a process may use, on machines of every kind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvbudget.errors import UserError
from kvbudget.sources import threads


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    for name in (threads.GIVEN, threads.AT_ONCE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_quota", lambda: float("inf"))


def test_affinity_counts_where_the_system_has_it(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert threads.threads() == threads.usable() == 3


def test_all_processors_where_it_has_not(monkeypatch):
    """macOS and Windows."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert threads.threads() == threads.usable() == 10
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert threads.threads() == 1


@pytest.mark.parametrize(("quota", "usable"), [(2.0, 2), (1.5, 1), (0.2, 1), (64.0, 10)])
def test_a_container_with_less_time_than_processors(monkeypatch, quota, usable):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(10)), raising=False)
    monkeypatch.setattr(threads, "_quota", lambda: quota)
    assert threads.usable() == usable


def test_what_is_given_counts_everywhere(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setenv("KVBUDGET_THREADS", "3")
    assert threads.threads() == 3
    for bad in ("many", "0", "-1", "2.5", "", "²"):
        monkeypatch.setenv("KVBUDGET_THREADS", bad)
        with pytest.raises(UserError, match=r"KVBUDGET_THREADS is .*; give a number of threads"):
            threads.threads()


def test_the_least_quota_of_the_groups_above(tmp_path):
    (tmp_path / "system.slice" / "job").mkdir(parents=True)
    own = tmp_path / "cgroup"
    own.write_text("1:name=systemd:/x\n0::/system.slice/job\n")
    for place, limit in (("", "max 100000"), ("system.slice", "150000 100000")):
        (tmp_path / place / "cpu.max").write_text(f"{limit}\n")
    assert QUOTA(tmp_path, own) == 1.5
    (tmp_path / "system.slice" / "job" / "cpu.max").write_text("50000 100000\n")
    assert QUOTA(tmp_path, own) == 0.5
    assert QUOTA(tmp_path / "absent", own) == float("inf")
    assert QUOTA(tmp_path, tmp_path / "absent") == float("inf")


QUOTA = threads._quota


def test_loading_and_environment_without_affinity(tmp_path):
    """As a process of its own, which has no `sched_getaffinity` from its start."""
    code = f"""
import os, sys
del os.sched_getaffinity
from pathlib import Path
from kvbudget.run import environment
from kvbudget.sources.download import download
from kvbudget.sources.load import load
from kvbudget.sources.registry import Random
assert environment.describe(Path("."))["cpu"]["usable"] >= 1
download("tiny", Random(), Path({str(tmp_path / "tiny")!r}))
load({str(tmp_path / "tiny")!r}, "float32", "cpu")
"""
    unset = {name: value for name, value in os.environ.items() if name != "KVBUDGET_THREADS"}
    subprocess.run([sys.executable, "-c", code], check=True, env=unset, cwd=Path.cwd())


def test_threads_that_wait_do_not_spin():
    """The command line says so before torch is imported; a user's own choice stands."""
    code = "from kvbudget import cli; cli.main([]); import os; print(os.environ['OMP_WAIT_POLICY'])"
    unset = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for given, policy in ({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"):
        done = subprocess.run(
            [sys.executable, "-c", code], env=unset | given, capture_output=True, text=True
        )
        assert done.stdout.splitlines()[-1] == policy


def test_measurements_at_once_are_one_unless_told(monkeypatch):
    assert threads.at_once() == 1
    monkeypatch.setenv("KVBUDGET_AT_ONCE", "12")
    assert threads.at_once() == 12
    monkeypatch.setenv("KVBUDGET_AT_ONCE", "some")
    with pytest.raises(UserError, match="KVBUDGET_AT_ONCE is 'some'; give a number of meas"):
        threads.at_once()
