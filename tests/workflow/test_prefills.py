"""Contexts that are read once for all methods: when they are made, taken and given back."""

import functools
import json
import re
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from kills import outcome
from pipeline import TINY, copy_repository, edited, paths, snakemake

pytestmark = pytest.mark.workflow

STUDY = "workflow/studies/sharing.yaml"
STORE = "results/prefills"
METHODS = ["full", "h2o", "keydiff-4bit"]


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    """A copy of the repository with two places of three cells, measured with shared contexts."""
    copy = tmp_path_factory.mktemp("sharing") / "repo"
    copy_repository(copy)
    tiny = yaml.safe_load((copy / TINY).read_text())
    grid = tiny["experiments"][0] | {"lengths": [600, 800], "methods": METHODS}
    study = tiny | {
        "study": "sharing",
        "samples": {"contexts": 4, "questions": 1},
        "prefills": {"own_contexts": 1},
        "experiments": [grid],
    }
    (copy / STUDY).write_text(yaml.safe_dump(study))
    run = measure(copy)
    (copy / "run.txt").write_text(run)
    return copy


@functools.cache  # no test changes what their names depend on
def results(repo: Path) -> list[str]:
    """Paths of the cells."""
    return list(paths(repo, STUDY).values())


def measure(repo: Path, *arguments: str) -> str:
    """Measure what is missing, one job at a time; what Snakemake prints."""
    targets = [path for path in cells(repo) if not (repo / path).exists()]
    run = snakemake(repo, "--resources", "gpu=1", *arguments, "--", *targets, configs=(STUDY,))
    assert run.returncode == 0, run.stdout
    return run.stdout


def cells(repo: Path, part: str = "") -> list[str]:
    """Paths of the cells whose path has a part."""
    return [path for path in results(repo) if part in path]


def jobs(repo: Path, targets: list[str], *arguments: str) -> Counter:
    """Jobs by rule that a run would do to measure some cells."""
    run = snakemake(repo, "--dry-run", *arguments, "--", *targets, configs=(STUDY,))
    assert run.returncode == 0, run.stdout
    return Counter(re.findall(r"^(?:local)?rule (\w+):$", run.stdout, re.MULTILINE))


@contextmanager
def missing(repo: Path, count: int = len(METHODS)):
    """The first records of a place are not there for a while, or are made again."""
    lost = [repo / path for path in cells(repo, "/L800/")[:count]]
    records = [path.read_text() for path in lost]
    for path in lost:
        path.unlink()
        path.with_suffix(".contexts.jsonl").unlink(missing_ok=True)
    yield
    for path, record in zip(lost, records, strict=True):
        if path.exists():
            assert outcome(path.read_text()) == outcome(record)
        path.write_text(record)


def test_cells_take_all_contexts_but_their_own_from_what_was_recorded(repo):
    for path in cells(repo):
        contexts = json.loads((repo / path).read_text())["contexts"]
        assert (len(contexts["read"]), len(contexts["adopted"])) == (1, 3)


def test_contexts_are_given_back_before_those_of_the_next_place_are_recorded(repo):
    steps = re.findall(
        rf"^(?:localrule (prefill|cell):$|(Removing) .* {STORE})",
        (repo / "run.txt").read_text(),
        re.MULTILINE,
    )
    place = ["prefill", *["cell"] * len(METHODS), "Removing"]
    assert ["".join(step) for step in steps] == place * 2
    assert not list((repo / STORE).rglob("*.safetensors"))


def test_without_them_the_records_are_the_same(repo):
    with missing(repo):  # which compares
        measure(repo, "--config", "prefills={share: never}")
        for path in cells(repo, "/L800/"):
            assert not json.loads((repo / path).read_text())["contexts"]["adopted"]


def test_they_are_recorded_for_cells_that_are_missing_where_that_pays(repo, monkeypatch):
    place = cells(repo, "/L800/")
    with missing(repo, 1):
        assert jobs(repo, place[:1]) == Counter(["cell"])
    with missing(repo):
        shared, apart = Counter({"cell": len(METHODS), "prefill": 1}), Counter(["cell"] * 3)
        assert jobs(repo, place) == shared
        # One cell that is asked for by name reads for itself.
        assert jobs(repo, place[:1]) == Counter(["cell"])
        assert jobs(repo, place, "--config", "prefills={share: never}") == apart
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        assert jobs(repo, place) == apart
        assert jobs(repo, place, "--config", "prefills={share: always}") == shared


def test_cells_read_by_themselves_where_recording_fails(repo):
    record = repo / "src/kvbudget/run/prefill.py"
    with missing(repo), edited(record, lambda text: f"{text}\nraise MemoryError('of the test')\n"):
        said = measure(repo)
        for path in cells(repo, "/L800/"):
            assert not json.loads((repo / path).read_text())["contexts"]["adopted"]
    (log,) = re.findall(r"^Contexts could not be recorded, .* told in (\S+)$", said, re.MULTILINE)
    assert "MemoryError: of the test" in (repo / log).read_text()
    assert not list((repo / STORE).rglob("L800/*"))


def test_what_an_earlier_run_left_is_used_or_given_back(repo):
    older = repo / STORE / "tiny-llama/niah_single/L800/0123456789"
    older.mkdir(parents=True)
    (older / "0.safetensors").write_bytes(b"x")
    with missing(repo):
        assert "rule prefill:" in measure(repo, "--notemp")
    assert not older.exists()
    (left,) = (path.parent for path in (repo / STORE).rglob("prefills.json"))
    with missing(repo):
        said = measure(repo)
    assert "rule prefill:" not in said
    assert not left.exists()
