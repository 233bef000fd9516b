"""The pipeline itself, end to end: the `tiny` study in a copy of the repository."""

import os
import re
import shutil
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from pipeline import TINY, snakemake

pytestmark = pytest.mark.workflow

CELLS = "results/tiny/cells/tiny-llama"
H2O = {f"{CELLS}/niah_single/L800/h2o/B20p.json"}
#: What has to run again whenever a cell changes.
DEPENDENTS = {"aggregate", "tables", "figures", "numbers", "check_paper", "pdf", "all"}


def plan(repo: Path) -> tuple[Counter, set[str]]:
    """Jobs by rule that a run would do, and the cells among their outputs."""
    result = snakemake(repo, "--dry-run")
    assert result.returncode == 0, result.stdout
    jobs = Counter(re.findall(r"^(?:local)?rule (\w+):$", result.stdout, re.MULTILINE))
    assert jobs or "Nothing to be done" in result.stdout, result.stdout
    return jobs, set(re.findall(rf"^    output: ({CELLS}/\S+)$", result.stdout, re.MULTILINE))


@contextmanager
def edited(file: Path, change):
    """A file with other text for a while; afterwards as it was, time stamp and all."""
    before, stat = file.read_text(), file.stat()
    file.write_text(change(before))
    assert file.read_text() != before
    try:
        yield
    finally:
        file.write_text(before)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@contextmanager
def away(path: Path):
    """A file or directory that is not there for a while."""
    hidden = path.with_name(path.name + ".away")
    path.rename(hidden)
    try:
        yield
    finally:
        hidden.rename(path)


def test_the_paper_is_there_and_nothing_is_left_to_do(repo):
    assert (repo / "paper/main.pdf").read_bytes().startswith(b"%PDF-")
    result = snakemake(repo)
    assert result.returncode == 0
    assert "Nothing to be done" in result.stdout


def test_a_deleted_cell_and_what_depends_on_it_run_again(repo):
    (cell,) = H2O
    with away(repo / cell):
        jobs, cells = plan(repo)
    assert cells == H2O
    assert jobs == Counter(["cell", *DEPENDENTS])


def test_a_comment_in_a_policy_runs_nothing(repo):
    with edited(repo / "src/kvbudget/policies/h2o.py", lambda text: text + "\n# A comment.\n"):
        assert plan(repo) == (Counter(), set())


def test_a_changed_line_of_h2o_runs_the_cells_of_h2o_alone(repo):
    with edited(repo / "src/kvbudget/policies/h2o.py", lambda text: text + "\nCHANGED = 1\n"):
        jobs, cells = plan(repo)
    assert cells == H2O
    assert jobs == Counter(["cell", "plan", *DEPENDENTS])


def test_a_changed_line_of_a_figure_runs_no_cell(repo):
    with edited(repo / "src/kvbudget/paper/figures.py", lambda text: text + "\nCHANGED = 1\n"):
        jobs, _ = plan(repo)
    assert jobs == Counter(["figures", "check_paper", "pdf", "all"])


def test_a_changed_parameter_runs_the_cells_of_its_method_alone(repo):
    def change(text: str) -> str:
        return text.replace("h2o: {title: H2O,", "h2o: {title: H2O, stride: 3,")

    with edited(repo / "config.yaml", change):
        jobs, cells = plan(repo)
    assert cells == H2O
    assert jobs == Counter(["cell", "plan", *DEPENDENTS])


def test_a_title_runs_no_cell(repo):
    with edited(repo / "config.yaml", lambda text: text.replace("title: H2O,", "title: H2O two,")):
        jobs, _ = plan(repo)
    assert jobs == Counter(["plan", *DEPENDENTS])


def test_records_of_other_code_run_again_where_snakemake_has_no_notes(repo):
    """As in a fresh clone with results from elsewhere. A dry run for last: it dates cells back."""
    changed = edited(repo / "src/kvbudget/policies/h2o.py", lambda text: text + "\nCHANGED = 1\n")
    (cell,) = (repo / path for path in H2O)
    stat = cell.stat()
    with away(repo / ".snakemake"):
        with changed:
            _, cells = plan(repo)
        shutil.rmtree(repo / ".snakemake")
    os.utime(cell, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cells == H2O


def test_weights_may_be_gone_once_the_cells_are_there(repo):
    with away(repo / "results/models/tiny-llama"):
        assert plan(repo) == (Counter(), set())


def test_weights_that_are_gone_are_asked_for_before_anything_runs(repo):
    (cell,) = H2O
    with away(repo / "results/models/tiny-llama"), away(repo / cell):
        result = snakemake(repo)
    assert result.returncode != 0
    again = "snakemake --configfile workflow/studies/tiny.yaml --cores 1"
    assert f"get the model again: {again} results/models/tiny-llama/source.json" in result.stdout
    assert "rule cell" not in result.stdout.partition("WorkflowError")[2]


def test_a_gpu_that_is_asked_for_and_absent_stops_at_once(repo, monkeypatch):
    (repo / "gpu.yaml").write_text("device: cuda\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (cell,) = H2O
    with away(repo / cell):
        result = snakemake(repo, configs=(TINY, "gpu.yaml"))
    assert result.returncode != 0
    assert "device: cuda is asked for, and there is no CUDA device" in result.stdout
    # With all measured, the paper can be built on a laptop.
    result = snakemake(repo, cell, configs=(TINY, "gpu.yaml"))
    assert "Nothing to be done" in result.stdout


def test_text_in_the_config_reaches_no_shell(repo):
    path = "x'; touch pwned; $(touch pwned) `touch pwned` {touch} \\input{pwned}"
    (repo / "hostile.yaml").write_text(
        yaml.safe_dump(
            {
                "study": "hostile",
                "haystack": "h",
                "haystacks": {"h": {"source": "file", "path": path}},
            }
        )
    )
    result = snakemake(repo, "results/text/h.txt", configs=(TINY, "hostile.yaml"))
    assert f"haystack file {path} does not exist" in result.stdout
    assert not list(repo.rglob("pwned"))


def test_a_misspelt_key_stops_at_once_and_is_named(repo):
    (repo / "misspelt.yaml").write_text("sampels: {contexts: 1}\n")
    result = snakemake(repo, configs=(TINY, "misspelt.yaml"))
    assert result.returncode != 0
    assert "unknown key 'sampels' at the top level, did you mean 'samples'?" in result.stdout
    assert "Traceback" not in result.stdout
    assert "Building DAG" not in result.stdout


def test_a_cell_outside_the_study_is_refused(repo):
    result = snakemake(repo, f"{CELLS}/niah_single/L800/h2o/B30p.json")
    assert result.returncode != 0
    assert "B30p.json is not a cell of study 'tiny'" in result.stdout


def test_a_failure_is_reported_with_the_command_that_runs_it_again(repo):
    (repo / "broken.yaml").write_text(
        "study: broken\nhaystack: gone\nhaystacks: {gone: {source: file, path: gone.txt}}\n"
    )
    result = snakemake(repo, "results/text/gone.txt", configs=(TINY, "broken.yaml"))
    assert result.returncode != 0
    page = (repo / "results/broken/failures.md").read_text()
    again = "snakemake --configfile workflow/studies/tiny.yaml broken.yaml --cores 1"
    assert f"    {again} results/text/gone.txt\n" in page
    assert "gone.txt does not exist" in page


def test_the_full_study_can_be_planned(repo):
    result = snakemake(repo, "--dry-run", "--quiet", configs=("workflow/studies/full.yaml",))
    assert result.returncode == 0, result.stdout
