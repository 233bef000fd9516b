"""A published study in a clone: its paper is built of the archive alone, other code or not, and
what other code gives is compared with it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline import TINY, copy_repository, place, snakemake
from test_tiny import DEPENDENTS

from kvbudget.study.bundle import pack
from kvbudget.study.config import read
from kvbudget.study.expand import expand

pytestmark = pytest.mark.workflow

STORE = "results/published/tiny"
SINKS = "src/kvbudget/policies/streaming_llm.py"
CELL = f"{STORE}/cells/tiny-llama/niah_single/L800/streaming-llm/B20p.json"


def kvbudget(clone: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "kvbudget", *words]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(clone / "src")}
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def clone(repo, tmp_path_factory) -> Path:
    """A fresh clone in which the tiny study is published."""
    copy = tmp_path_factory.mktemp("clone")
    copy_repository(copy)
    archive = copy / "results/published/tiny.tar.xz"
    assert pack(expand(read("tiny", repo), repo), archive) == (9, 9)
    return copy


def jobs(output: str) -> set[str]:
    return set(re.findall(r"^(?:local)?rule (\w+):$", output, re.MULTILINE))


def test_the_paper_is_built_of_the_archive_alone(repo, clone):
    result = snakemake(clone)
    assert result.returncode == 0, result.stdout
    assert jobs(result.stdout) == {"unpack", *DEPENDENTS}
    assert "Its records are published (9 of 9 planned cells" in result.stdout
    assert (clone / "paper/main.pdf").read_bytes() == (repo / "paper/main.pdf").read_bytes()
    assert {path.name for path in (clone / "results").iterdir()} == {"code", "published", "tiny"}
    assert "Nothing to be done" in snakemake(clone).stdout
    done = kvbudget(clone, "verify", "tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("study tiny is published: 9 of 9 planned cells (9 measured)")


def test_it_is_measured_anew_where_that_is_asked_for(clone):
    result = snakemake(clone, "--dry-run", "--config", "published=ignore")
    outputs = re.findall(r"^    output: (results/cells/\S+)$", result.stdout, re.MULTILINE)
    assert len(outputs) == 9
    assert "unpack" not in jobs(result.stdout)


@pytest.fixture(scope="class")
def models(repo, clone) -> None:
    """What a record is computed again with."""
    for name in ("models", "text"):
        shutil.copytree(repo / "results" / name, clone / "results" / name)


@pytest.mark.usefixtures("models")
class TestOtherCode:
    """What today's code gives is compared with what is published: the last in this file, as the
    code of the clone is then another."""

    def test_that_gives_the_same(self, clone):
        policy = clone / SINKS
        policy.write_text(policy.read_text() + "\nCHANGED = 1\n")
        done = kvbudget(clone, "verify", "tiny")
        assert done.returncode == 1
        (path, reason) = done.stdout.splitlines()[0].split(": ")
        assert place(path) == CELL
        assert reason == (
            "measured by earlier code (kvbudget.policies.streaming_llm changed since)"
        )
        done = kvbudget(clone, "attest", "tiny")
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith("1 of 1 records of earlier code attested")
        done = kvbudget(clone, "verify", "tiny")
        # The paper's tables still say what was so before.
        assert "(8 measured, 1 attested)" in done.stdout
        provenance = "paper/tiny/tables/provenance.tex"
        assert snakemake(clone, "--", provenance).returncode == 0
        assert kvbudget(clone, "verify", "tiny").returncode == 0
        assert "and attested" in (clone / provenance).read_text()
        assert kvbudget(clone, "attest", "tiny").stdout == (
            "study tiny: no published record is of earlier code\n"
        )

    def test_that_gives_another_result(self, clone):
        policy = clone / SINKS
        policy.write_text(policy.read_text().replace("CHANGED = 1", "CHANGED = 2"))
        cell = next(clone.glob(CELL.replace(".json", "-*.json")))
        record = json.loads(cell.read_text())
        record["samples"][0]["nll"] += 1e-9
        cell.write_text(json.dumps(record))
        for _ in range(2):  # what differs is computed once and told again
            done = kvbudget(clone, "attest", "tiny")
            assert done.returncode == 1
            assert done.stdout.splitlines()[0] == (
                f"{cell.relative_to(clone)}: today's code gives another nll of 1 in 1 samples"
            )
        assert "(8 measured, 1 earlier code)" in kvbudget(clone, "verify", "tiny").stdout

    def test_needs_a_model_and_says_so(self, clone):
        policy = clone / SINKS
        policy.write_text(policy.read_text().replace("CHANGED = 2", "CHANGED = 3"))
        shutil.rmtree(clone / "results/models")
        done = kvbudget(clone, "attest", "tiny")
        assert done.returncode == 2
        assert "results/models/tiny-llama.verified.json is missing" in done.stderr
        assert f"--configfile {TINY}" in done.stderr
