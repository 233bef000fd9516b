"""A finished study is checked, and carried to a clone that then has nothing to compute."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline import copy_repository, snakemake
from test_tiny import away, edited

from kvbudget.errors import UserError
from kvbudget.study import verify
from kvbudget.study.bundle import pack, unpack
from kvbudget.study.records import load_study

pytestmark = pytest.mark.workflow

CELL = "results/tiny/cells/tiny-llama/niah_single/L800/h2o/B20p.json"
CALIBRATION = "results/tiny/calibrations/tiny-llama.json"
VERIFIED = "results/models/tiny-llama.verified.json"
STUDY = "results/tiny/study.json"


def stale(repo: Path) -> dict[str, str]:
    found = verify.stale(load_study(repo / STUDY), repo / "results")
    return {path.removeprefix(f"{repo}/"): reason for path, reason in found}


def change(text: str, **values) -> str:
    return json.dumps(json.loads(text) | values)


@pytest.fixture(autouse=True)
def here(repo, monkeypatch):
    monkeypatch.chdir(repo)


def test_a_finished_study_is_current(repo):
    command = [sys.executable, "-m", "kvbudget.study.verify", "--study", STUDY]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "study tiny: 9 cells and all they rest on are current\n"
    with away(repo / CELL):
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == f"{CELL}: no record"
    assert "`make paper STUDY=tiny`" in done.stdout


class TestStale:
    @pytest.mark.parametrize("path", [VERIFIED, CALIBRATION])
    def test_a_missing_file(self, repo, path):
        with away(repo / path):
            assert stale(repo)[path] == "missing"

    def test_another_spec(self, repo):
        spec = json.loads((repo / CELL).read_text())["spec"]
        method = spec["method"] | {"stride": 3}
        with edited(repo / CELL, lambda text: change(text, spec=spec | {"method": method})):
            assert stale(repo) == {
                CELL: "measured for another spec (method.stride was 3, the plan has none)"
            }

    @pytest.mark.parametrize("path", [CELL, CALIBRATION])
    def test_other_code_is_named_by_module(self, repo, path):
        code = json.loads((repo / path).read_text())["code"]
        parts = json.loads((repo / f"results/tiny/code/{code}.json").read_text())
        older = repo / f"results/tiny/code/{'0' * 64}.json"
        older.write_text(json.dumps(parts | {"kvbudget.sources.text": "0", "torch": "2.0"}))
        with edited(repo / path, lambda text: change(text, code="0" * 64)):
            assert stale(repo) == {
                path: "measured by other code (kvbudget.sources.text, torch changed since)"
            }
            older.unlink()
            assert "measured by other code (000000000000, the plan has" in stale(repo)[path]

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
            plan = json.loads(text)
            plan["config"]["models"]["tiny-llama"]["seed"] = 5
            return json.dumps(plan)

        with edited(repo / STUDY, another_seed):
            assert stale(repo) == {VERIFIED: "the config now takes this model from somewhere else"}

    def test_another_text(self, repo):
        with edited(repo / "results/text/license.txt", lambda text: text + "More.\n"):
            assert stale(repo) == {"results/text/license.txt": "changed since it was made"}
        with edited(
            repo / "results/text/license.verified.json", lambda text: change(text, sha256="0")
        ):
            assert stale(repo)[CELL] == "measured on another text than the verified one"

    def test_a_table_that_was_edited(self, repo):
        table = "results/tiny/csv/comparisons.csv"
        with edited(repo / table, lambda text: text.replace("0", "1")):
            assert stale(repo) == {table: "is not what the records give"}


@pytest.fixture(scope="module")
def bundle(repo, tmp_path_factory) -> Path:
    archive = tmp_path_factory.mktemp("bundle") / "tiny.tar.gz"
    assert pack(repo / STUDY, archive) == (9, 9)
    return archive


def test_a_clone_with_a_bundle_computes_nothing_and_builds_the_same_paper(repo, bundle, tmp_path):
    copy_repository(tmp_path)
    assert unpack(bundle, tmp_path) == ("tiny", 9)
    result = snakemake(tmp_path)
    assert result.returncode == 0, result.stdout
    jobs = set(re.findall(r"^(?:local)?rule (\w+):$", result.stdout, re.MULTILINE))
    assert jobs == {
        "plan",
        "aggregate",
        "tables",
        "figures",
        "numbers",
        "check_paper",
        "pdf",
        "all",
    }
    first, second = (
        hashlib.sha256((each / "paper/main.pdf").read_bytes()).hexdigest()
        for each in (repo, tmp_path)
    )
    assert first == second
    assert "Nothing to be done" in snakemake(tmp_path).stdout


def test_a_draft_typesets_what_there_is_and_leaves_the_paper_alone(bundle, tmp_path):
    copy_repository(tmp_path)
    unpack(bundle, tmp_path)
    (tmp_path / CELL).unlink()
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    done = subprocess.run(
        ["make", "-s", "-o", ".venv/.installed", "-o", "tex", "draft", "STUDY=tiny"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    draft = tmp_path / "results/tiny/draft"
    assert (draft / "main.pdf").read_bytes().startswith(b"%PDF")
    assert "\\draftstudytrue" in (draft / "numbers.tex").read_text()
    assert (draft / "csv/missing.csv").read_text().split() == ["path", CELL]
    assert not (tmp_path / CELL).exists()
    assert not (tmp_path / "paper/tables").exists()


def test_the_same_study_gives_the_same_archive(repo, bundle, tmp_path):
    pack(repo / STUDY, tmp_path / "again.tar.gz")
    assert (tmp_path / "again.tar.gz").read_bytes() == bundle.read_bytes()


def test_a_bundle_replaces_nothing_that_differs(bundle, tmp_path):
    unpack(bundle, tmp_path)
    mine = (tmp_path / CELL).read_text().replace('"schema": 1', '"schema": 1, "mine": true')
    (tmp_path / CELL).write_text(mine)
    (tmp_path / CALIBRATION).unlink()
    with pytest.raises(UserError, match=f"{CELL} is there already and differs"):
        unpack(bundle, tmp_path)
    assert (tmp_path / CELL).read_text() == mine
    assert not (tmp_path / CALIBRATION).exists()


def test_a_bundle_holds_what_is_current_alone(repo, tmp_path):
    with edited(repo / CELL, lambda text: change(text, code="0" * 64)):
        assert pack(repo / STUDY, tmp_path / "part.tar.gz") == (8, 9)
    unpack(tmp_path / "part.tar.gz", tmp_path)
    assert not (tmp_path / CELL).exists()
    assert not list(tmp_path.rglob("*.safetensors"))
