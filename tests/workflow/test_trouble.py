"""What may go wrong with a run: a cell that fails, a full disk, a second run, kills."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from kills import KINDS, Victim, outcome, outcomes
from pipeline import TINY, paths, snakemake

pytestmark = pytest.mark.workflow

CONFIG = "workflow/studies/trouble.yaml"
CELLS = "results/cells/tiny-llama/niah_single/L800"
PAGE = "results/trouble/failures.md"


@pytest.fixture(scope="module")
def repo(repo, tmp_path_factory) -> Path:
    """A copy of the repository with models and texts, and a study of two cells to compute."""
    copy = tmp_path_factory.mktemp("trouble") / "repo"
    shutil.copytree(repo, copy)
    (copy / ".venv").symlink_to(sys.prefix)
    shutil.rmtree(copy / "results/cells")
    write_study(copy, CONFIG, contexts=6, experiments=[{"methods": ["h2o", "streaming-llm"]}])
    return copy


@pytest.fixture(scope="module")
def made(repo) -> dict[str, str]:
    """Paths of the study's cells by their place."""
    return paths(repo, CONFIG)


@pytest.fixture(scope="module")
def h2o(made) -> str:
    """Path of the cell of h2o."""
    return made[f"{CELLS}/h2o/B20p.json"]


@pytest.fixture(scope="module")
def streaming(made) -> str:
    """Path of the cell of StreamingLLM."""
    return made[f"{CELLS}/streaming-llm/B20p.json"]


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


def test_one_cell_fails_and_the_others_finish(repo, h2o, streaming):
    policy = repo / "src/kvbudget/policies/h2o.py"
    sound = policy.read_text()
    policy.write_text(sound + '\nraise MemoryError("poisoned")\n')
    poisoned = paths(repo, CONFIG)[f"{CELLS}/h2o/B20p.json"]
    assert poisoned != h2o
    result = snakemake(repo, poisoned, streaming, configs=(CONFIG,))
    assert result.returncode != 0
    assert (repo / streaming).exists()
    assert f"failed: {poisoned}: out of memory; use a shorter length" in result.stdout
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
    assert f"failed: {poisoned}\n" in status.stdout

    # Mended, the cell is another one; the command that was printed is that of the poisoned one.
    policy.write_text(sound)
    assert f"    make rerun STUDY=trouble CELL={poisoned}\n" in page
    command = ["make", "-o", ".venv/.installed", "rerun", "STUDY=trouble", f"CELL={h2o}"]
    again = subprocess.run(command, cwd=repo, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (repo / h2o).exists()
    assert not (repo / PAGE).exists()


def test_a_disk_that_is_full_in_the_middle_of_a_cell(repo, streaming):
    before = outcome((repo / streaming).read_text())
    (repo / streaming).unlink()
    with full_disk((repo / streaming).parent, free=4 << 10) as filler:
        result = snakemake(repo, streaming, configs=(CONFIG,))
        assert result.returncode != 0
        assert f"failed: {streaming}: no space left on the disk; free some" in result.stdout
        side = (repo / streaming).with_suffix(".contexts.jsonl")
        done = [line for line in side.read_bytes().splitlines(True) if line.endswith(b"\n")]
        assert len(done) > 1  # the first line names the cell
        filler.unlink()
        result = snakemake(repo, streaming, configs=(CONFIG,))
        assert result.returncode == 0, result.stdout
        record = (repo / streaming).read_text()
    (repo / streaming).write_text(record)
    assert outcome(record) == before


def test_results_that_cannot_be_written_stop_the_run_at_once(repo, h2o):
    hidden = (repo / h2o).rename(repo / "hidden")
    with read_only(repo / "results"):
        result = snakemake(repo, h2o, configs=(CONFIG,))
    hidden.rename(repo / h2o)
    assert result.returncode != 0
    place = repo / "results/trouble"
    assert f"{place} cannot be written; make it writable for you" in result.stdout
    assert "Traceback" not in result.stdout


@pytest.fixture
def victim(repo, h2o, streaming):
    victim = Victim(repo, CONFIG, [h2o, streaming], random.Random(1))
    yield victim
    victim.stop()


def test_a_second_run_is_refused_and_kills_lose_nothing(repo, victim):
    victim.wipe()  # what was measured before was measured with other threads
    assert snakemake(repo, "--", *victim.targets, configs=(CONFIG,)).returncode == 0
    victim.expected = outcomes(victim.cells)
    victim.wipe()
    victim.start()
    while len(list((repo / ".snakemake/locks").glob("*"))) < 2:  # of what it reads and writes
        time.sleep(0.1)
    # It stands still meanwhile, or it may be over before the second run looks for its locks.
    os.killpg(victim.process.pid, signal.SIGSTOP)
    second = snakemake(repo, *victim.targets, configs=(CONFIG,))
    os.killpg(victim.process.pid, signal.SIGCONT)
    assert second.returncode != 0
    assert second.stdout.count("Directory cannot be locked") == 1
    assert "It can be removed with the --unlock argument" in second.stdout
    assert "Traceback" not in second.stdout

    victim.disturb(KINDS, longest=12)
    victim.finish()
    assert victim.lost == 0
    assert outcomes(victim.cells) == victim.expected
