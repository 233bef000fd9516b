"""A finished study is checked, and carried to a clone that then has nothing to compute."""

import hashlib
import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from pipeline import TINY, away, copy_repository, edited, place, snakemake
from test_tiny import DEPENDENTS

from kvbudget.analysis import verify
from kvbudget.errors import UserError
from kvbudget.study.bundle import pack, unpack
from kvbudget.study.config import read
from kvbudget.study.expand import expand
from kvbudget.study.plan import Study

pytestmark = pytest.mark.workflow

CELL = "results/cells/tiny-llama/niah_single/L800/h2o/B20p.json"
CALIBRATION = "results/calibrations/tiny-llama/default.json"
VERIFIED = "results/models/tiny-llama.verified.json"


def study(repo: Path) -> Study:
    return expand(read("tiny", repo), repo)


def stale(repo: Path) -> dict[str, str]:
    return {
        place(path.removeprefix(f"{repo}/")): reason for path, reason in verify.stale(study(repo))
    }


@pytest.fixture
def cell(repo, made) -> Path:
    return repo / made[CELL]


@pytest.fixture
def calibration(repo, made) -> Path:
    return repo / made[CALIBRATION]


@contextmanager
def beside(path: Path, like: Path, **values):
    """A record of the same place, with other content, measured before: `like` is away."""
    older = path.with_name(f"{path.stem.rpartition('-')[0]}-{'0' * 10}.json")
    older.write_text(change(like.with_name(like.name + ".away").read_text(), **values))
    try:
        yield
    finally:
        older.unlink()


def change(text: str, **values) -> str:
    return json.dumps(json.loads(text) | values)


@pytest.fixture(autouse=True)
def here(repo, monkeypatch):
    monkeypatch.chdir(repo)


def test_a_finished_study_is_current(repo, cell):
    command = [sys.executable, "-m", "kvbudget", "verify", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "study tiny: 9 cells and all they rest on are current\n"
    with away(cell):
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == f"{cell.relative_to(repo)}: no record"
    assert f"`snakemake --configfile {TINY} --cores 1" in done.stdout


class TestStale:
    def test_a_missing_file(self, repo, calibration):
        with away(repo / VERIFIED):
            assert stale(repo)[VERIFIED] == "missing"
        with away(calibration):
            assert stale(repo)[CALIBRATION] == "no record"

    def test_another_spec(self, repo, cell):
        spec = json.loads(cell.read_text())["spec"]
        older = spec | {"method": spec["method"] | {"stride": 3}}
        with away(cell), beside(cell, cell, spec=older):
            assert stale(repo) == {
                CELL: "no record; B20p-0000000000.json was measured with another spec "
                "(method.stride 3 where the plan has none)"
            }

    @pytest.mark.parametrize("which", ["cell", "calibration"])
    def test_other_code_is_named_by_module(self, repo, which, request):
        path = request.getfixturevalue(which)
        code = json.loads(path.read_text())["code"]
        parts = json.loads((repo / f"results/code/{code}.json").read_text())
        older = repo / f"results/code/{'0' * 64}.json"
        older.write_text(json.dumps(parts | {"kvbudget.run.cell": "0", "torch": "2.0"}))
        with away(path), beside(path, path, code="0" * 64):
            (reason,) = stale(repo).values()
            assert "was measured with other code (kvbudget.run.cell, torch changed since)" in reason
            older.unlink()
            (reason,) = stale(repo).values()
            assert "was measured with other code (000000000000, the plan has" in reason

    def test_a_record_under_a_name_that_is_not_its_own(self, repo, cell):
        with edited(cell, lambda text: change(text, code="0" * 64)):
            assert stale(repo) == {CELL: "holds the record of another cell"}

    def test_other_weights(self, repo):
        with edited(repo / VERIFIED, lambda text: change(text, sha256="0" * 64)):
            found = stale(repo)
        assert "measured with weights" in found[CELL]
        assert found[CALIBRATION] == "measured with other weights than the verified ones"

    def test_files_of_the_model_altered_on_disk(self, repo):
        with edited(repo / "results/models/tiny-llama/config.json", lambda text: text + "\n"):
            assert stale(repo) == {"results/models/tiny-llama": "changed since: config.json"}

    def test_a_model_that_the_config_takes_from_elsewhere(self, repo):
        def another_seed(text: str) -> str:
            return text.replace("architecture: llama", "architecture: llama\n    seed: 5")

        with edited(repo / TINY, another_seed):
            assert stale(repo)[VERIFIED] == "the config now takes this model from somewhere else"

    def test_another_text(self, repo):
        (text,) = (repo / "results/text").glob("license-*.txt")
        with edited(text, lambda text: text + "More.\n"):
            found = {path: reason for path, reason in stale(repo).items() if "text" in path}
            assert found == {place(f"results/text/{text.name}"): "changed since it was made"}
        with edited(text.with_suffix(".verified.json"), lambda text: change(text, sha256="0")):
            assert stale(repo)[CELL] == "measured on another text than the verified one"

    def test_a_calibration_made_anew(self, repo, calibration):
        with edited(calibration, lambda text: change(text, made="again")):
            found = stale(repo)
        assert found
        for path, reason in found.items():
            assert "/head-aware/" in path or "/ha-" in path
            assert (
                place(reason) == f"measured with another calibration than {CALIBRATION} now holds"
            )

    def test_a_table_that_was_edited(self, repo):
        table = "results/tiny/csv/comparisons.csv"
        with edited(repo / table, lambda text: text.replace("0", "1")):
            assert stale(repo) == {table: "is not what the records give"}


@pytest.fixture(scope="module")
def bundle(repo, tmp_path_factory) -> Path:
    archive = tmp_path_factory.mktemp("bundle") / "tiny.tar.xz"
    assert pack(study(repo), archive) == (9, 9)
    return archive


def test_a_clone_with_a_bundle_computes_nothing_and_builds_the_same_paper(repo, bundle, tmp_path):
    copy_repository(tmp_path)
    assert unpack(bundle, tmp_path) == ("tiny", 9)
    older, draft = (tmp_path / f"results/tiny/study-{digit * 10}.json" for digit in "01")
    older.parent.mkdir(parents=True, exist_ok=True)
    older.write_text('{"config": {"draft": false}}')
    draft.write_text('{"config": {"draft": true}}')
    result = snakemake(tmp_path)
    assert result.returncode == 0, result.stdout
    assert draft.exists() and not older.exists()
    jobs = set(re.findall(r"^(?:local)?rule (\w+):$", result.stdout, re.MULTILINE))
    assert jobs == DEPENDENTS
    first, second = (
        hashlib.sha256((each / "paper/main.pdf").read_bytes()).hexdigest()
        for each in (repo, tmp_path)
    )
    assert first == second
    assert "Nothing to be done" in snakemake(tmp_path).stdout


def test_a_draft_typesets_what_there_is_and_leaves_the_paper_alone(bundle, made, tmp_path):
    copy_repository(tmp_path)
    unpack(bundle, tmp_path)
    cell = made[CELL]
    (tmp_path / cell).unlink()
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    done = subprocess.run(
        ["make", "-s", "-o", ".venv/.installed", "-o", "tex", "draft", "STUDY=tiny"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    draft = tmp_path / "paper/tiny-draft"
    assert (draft / "main.pdf").read_bytes().startswith(b"%PDF")
    assert "\\draftstudytrue" in (draft / "numbers.tex").read_text()
    assert (tmp_path / "results/tiny/draft/csv/missing.csv").read_text().split() == ["path", cell]
    assert not (tmp_path / cell).exists()
    assert not (tmp_path / "paper/tiny").exists()


def test_the_same_study_gives_the_same_archive(repo, bundle, tmp_path):
    pack(study(repo), tmp_path / "again.tar.xz")
    assert (tmp_path / "again.tar.xz").read_bytes() == bundle.read_bytes()


def test_a_bundle_replaces_nothing_that_differs(bundle, cell, calibration, repo, tmp_path):
    unpack(bundle, tmp_path)
    cell, calibration = (tmp_path / path.relative_to(repo) for path in (cell, calibration))
    mine = cell.read_text().replace('"schema": 1', '"schema": 1, "mine": true')
    cell.write_text(mine)
    calibration.unlink()
    with pytest.raises(UserError, match="is there already and differs"):
        unpack(bundle, tmp_path)
    assert cell.read_text() == mine
    assert not calibration.exists()


def test_a_bundle_holds_what_is_current_alone(repo, cell, tmp_path):
    with edited(cell, lambda text: change(text, code="0" * 64)):
        assert pack(study(repo), tmp_path / "part.tar.xz") == (8, 9)
    unpack(tmp_path / "part.tar.xz", tmp_path)
    assert not (tmp_path / cell.relative_to(repo)).exists()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_records_of_another_version_are_measured_again(repo, bundle, tmp_path):
    """Snakemake has notes of records that were made here; those that came later are of another
    H2O: exactly that cell is measured."""
    copy_repository(tmp_path)
    policy = tmp_path / "src/kvbudget/policies/h2o.py"
    policy.write_text(policy.read_text() + "\nCHANGED = 1\n")
    unpack(bundle, tmp_path)
    result = snakemake(tmp_path, "--dry-run")
    outputs = re.findall(r"^    output: (results/cells/\S+)$", result.stdout, re.MULTILINE)
    assert list(map(place, outputs)) == [CELL]
