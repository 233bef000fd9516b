"""What may go wrong with a run: a cell that fails, a full disk, a second run, kills."""

import os
import random
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from kills import KINDS, Victim, outcome, outcomes
from pipeline import TINY, snakemake

pytestmark = pytest.mark.workflow

CONFIG = "workflow/studies/trouble.yaml"
CELLS = "results/trouble/cells/tiny-llama/niah_single/L800"
H2O, STREAMING = f"{CELLS}/h2o/B20p.json", f"{CELLS}/streaming-llm/B20p.json"
PLAN, PAGE = "results/trouble/study.json", "results/trouble/failures.md"


@pytest.fixture(scope="module")
def repo(repo, tmp_path_factory) -> Path:
    """A copy of the repository with models and texts, and a study of two cells to compute."""
    copy = tmp_path_factory.mktemp("trouble") / "repo"
    shutil.copytree(repo, copy)
    (copy / ".venv").symlink_to(sys.prefix)
    write_study(copy, CONFIG, contexts=6, experiments=[{"methods": ["h2o", "streaming-llm"]}])
    return copy


def write_study(repo: Path, file: str, contexts: int, experiments: list[dict]) -> None:
    """The tiny study with other experiments."""
    tiny = yaml.safe_load((repo / TINY).read_text())
    first = tiny["experiments"][0]
    study = tiny | {
        "study": Path(file).stem,
        "samples": {"contexts": contexts, "questions": 1},
        "experiments": [first | {"name": f"e{n}"} | each for n, each in enumerate(experiments)],
    }
    (repo / file).write_text(yaml.safe_dump(study))


@contextmanager
def full_disk(directory: Path, free: int):
    """A small file system at `directory` with so many bytes left. Yields what takes up the rest."""
    directory.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(directory)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        filler = directory / "filler"
        filler.write_bytes(b"0" * ((64 << 10) - free))
        yield filler
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextmanager
def read_only(directory: Path):
    """A directory that not even root can write to for a while."""
    bind = ["mount", "--bind", str(directory), str(directory)]
    if os.geteuid() or subprocess.run(bind, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(directory)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_one_cell_fails_and_the_others_finish(repo):
    policy = repo / "src/kvbudget/policies/h2o.py"
    sound = policy.read_text()
    policy.write_text(sound + '\nraise MemoryError("poisoned")\n')
    result = snakemake(repo, PLAN, H2O, STREAMING, configs=(CONFIG,))
    assert result.returncode != 0
    assert (repo / STREAMING).exists()
    assert f"failed: {H2O}: out of memory; use a shorter length" in result.stdout
    page = (repo / PAGE).read_text()
    assert page.startswith("# 1 failed\n")
    assert "Likely cause: out of memory; use a shorter length" in page
    assert "    MemoryError: poisoned\n" in page
    status = subprocess.run(
        ["make", "-s", "-o", ".venv/.installed", "status", "STUDY=trouble"],
        cwd=repo,
        capture_output=True,
        text=True,
    )
    assert "1 of 2 cells done, 1 failed, 0 left" in status.stdout, status.stderr
    assert f"failed: {H2O}\n" in status.stdout

    policy.write_text(sound)
    (command,) = re.findall(r"^    (make rerun .*)$", page, re.MULTILINE)
    command = command.replace("make", "make -o .venv/.installed", 1)
    again = subprocess.run(command.split(), cwd=repo, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (repo / H2O).exists()
    assert not (repo / PAGE).exists()


def test_a_disk_that_is_full_in_the_middle_of_a_cell(repo):
    before = outcome((repo / STREAMING).read_text())
    (repo / STREAMING).unlink()
    with full_disk((repo / STREAMING).parent, free=4 << 10) as filler:
        result = snakemake(repo, STREAMING, configs=(CONFIG,))
        assert result.returncode != 0
        assert f"failed: {STREAMING}: no space left on the disk; free some" in result.stdout
        side = (repo / STREAMING).with_suffix(".contexts.jsonl")
        done = [line for line in side.read_bytes().splitlines(True) if line.endswith(b"\n")]
        assert len(done) > 1  # the first line names the cell
        filler.unlink()
        result = snakemake(repo, STREAMING, configs=(CONFIG,))
        assert result.returncode == 0, result.stdout
        record = (repo / STREAMING).read_text()
    (repo / STREAMING).write_text(record)
    assert outcome(record) == before


def test_results_that_cannot_be_written_stop_the_run_at_once(repo):
    hidden = (repo / H2O).rename(repo / "hidden")
    with read_only(repo / "results"):
        result = snakemake(repo, H2O, configs=(CONFIG,))
    hidden.rename(repo / H2O)
    assert result.returncode != 0
    place = repo / "results/trouble"
    assert f"{place} cannot be written; make it writable for you" in result.stdout
    assert "Traceback" not in result.stdout


@pytest.fixture
def victim(repo):
    victim = Victim(repo, CONFIG, [H2O, STREAMING], random.Random(1))
    yield victim
    victim.stop()


def test_a_second_run_is_refused_and_kills_lose_nothing(repo, victim):
    victim.expected = outcomes(victim.cells)
    victim.wipe()
    victim.start()
    while not any((repo / ".snakemake/locks").glob("*")):
        time.sleep(0.1)
    second = snakemake(repo, *victim.targets, configs=(CONFIG,))
    assert second.returncode != 0
    assert second.stdout.count("Directory cannot be locked") == 1
    assert "It can be removed with the --unlock argument" in second.stdout
    assert "Traceback" not in second.stdout

    victim.disturb(KINDS, longest=12)
    victim.finish()
    assert victim.lost == 0
    assert outcomes(victim.cells) == victim.expected
