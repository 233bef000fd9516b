"""The pipeline itself, end to end: the `tiny` study in a copy of the repository."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from pipeline import TINY, away, edited, place, snakemake

from kvbudget.study.identity import text_identity

pytestmark = pytest.mark.workflow

CELLS = "results/cells/tiny-llama"
H2O = f"{CELLS}/niah_single/L800/h2o/B20p.json"
#: What has to run again whenever a cell changes.
DEPENDENTS = {"plan", "aggregate", "figure", "table", "numbers", "check_paper", "pdf", "all"}


def plan(repo: Path, *arguments: str) -> tuple[Counter, set[str]]:
    """Jobs by rule that a run would do, and the places of the cells among their outputs."""
    result = snakemake(repo, "--dry-run", *arguments)
    assert result.returncode == 0, result.stdout
    jobs = Counter(re.findall(r"^(?:local)?rule (\w+):$", result.stdout, re.MULTILINE))
    assert jobs or "Nothing to be done" in result.stdout, result.stdout
    cells = re.findall(rf"^    output: ({CELLS}/\S+)$", result.stdout, re.MULTILINE)
    return jobs, set(map(place, cells))


def cells_of(made: dict[str, str]) -> set[str]:
    """The places of the cells among all results."""
    return {place for place in made if place.startswith(CELLS)}


def state(repo: Path) -> dict[Path, tuple[int, int]]:
    """Times and sizes of all files that no run may touch by just looking."""
    files = (path for path in repo.rglob("*") if path.is_file() and ".snakemake" not in path.parts)
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in files
        if "__pycache__" not in path.parts
    }


def test_the_paper_is_there_and_nothing_is_left_to_do(repo):
    assert (repo / "paper/tiny/main.pdf").read_bytes().startswith(b"%PDF-")
    assert (repo / "paper/main.pdf").read_bytes() == (repo / "paper/tiny/main.pdf").read_bytes()
    result = snakemake(repo)
    assert result.returncode == 0
    assert "Nothing to be done" in result.stdout


def test_a_deleted_cell_and_what_depends_on_it_run_again(repo, made):
    with away(repo / made[H2O]):
        jobs, cells = plan(repo)
    assert cells == {H2O}
    assert set(jobs) == {"cell", *DEPENDENTS} - {"plan"}
    assert jobs["cell"] == 1


def test_a_missing_cell_runs_though_its_model_is_checked_anew_and_no_other_does(repo, made):
    """Snakemake leaves out what is missing where it takes all that is made anew for ancient."""
    check = repo / "src/kvbudget/sources/integrity.py"
    with edited(check, lambda text: text + "\nCHANGED = 1\n"):
        with away(repo / made[H2O]):
            jobs, cells = plan(repo, "--", made[H2O])
            every, all_cells = plan(repo)
        named, there = plan(repo, "--", made[H2O])
    assert (jobs, cells) == (Counter(verify_model=1, cell=1), {H2O})
    assert all_cells == {H2O}
    assert set(every) == {"verify_model", "cell", *DEPENDENTS} - {"plan"}
    assert (named, there) == (Counter(verify_model=1), set())


def test_a_comment_in_a_policy_runs_nothing(repo):
    with edited(repo / "src/kvbudget/policies/h2o.py", lambda text: text + "\n# A comment.\n"):
        assert plan(repo) == (Counter(), set())


@pytest.mark.parametrize("notes", [True, False], ids=["lived-in", "clone"])
def test_an_edit_runs_the_cells_of_its_method_and_taken_back_it_runs_nothing(repo, made, notes):
    """In a folder where Snakemake has its notes, and in one with results from elsewhere. No look at
    what is to be done changes anything on disk."""
    policy = repo / "src/kvbudget/policies/h2o.py"

    def look() -> tuple[int, set[str]]:
        jobs, cells = plan(repo)
        return jobs["cell"], cells

    before = state(repo)
    with contextlib.nullcontext() if notes else away(repo / ".snakemake"):
        assert look() == (0, set())
        with edited(policy, lambda text: text + "\nCHANGED = 1\n"):
            assert look() == (1, {H2O})
        assert look() == (0, set())
        assert plan(repo, "--config", "seed=2")[0]["cell"] == len(cells_of(made))
        assert look() == (0, set())
        if not notes:
            shutil.rmtree(repo / ".snakemake")
    after = state(repo)
    assert after == before


def test_a_parse_a_lint_and_a_report_change_no_result(repo):
    before = state(repo)
    assert snakemake(repo, "--lint").returncode == 0
    assert snakemake(repo, "--summary").returncode == 0
    result = snakemake(repo, "--report", ".snakemake/report.html")
    assert result.returncode == 0, result.stdout
    assert state(repo) == before
    page = (repo / ".snakemake/report.html").read_text()
    for part in (
        "Study <strong>tiny</strong>: KV-cache compression methods",
        "Quality against kept bytes, by method.",
        "What each head does, layer by query head",
        "The paper of study tiny.",
        "paper/tiny/figures/loss_curves.pdf",
        "results/tiny/csv/comparisons.csv",
    ):
        assert part in page


def test_a_changed_line_of_a_figure_runs_that_figure_alone(repo):
    figure = repo / "src/kvbudget/paper/plots/memory.py"
    with edited(figure, lambda text: text + "\nCHANGED = 1\n"):
        jobs, _ = plan(repo)
    assert jobs == Counter(["figure", "pdf", "all"])


def test_a_changed_template_renders_what_uses_it(repo):
    template = repo / "src/kvbudget/paper/templates/numbers.tex.j2"
    with edited(template, lambda text: text + "% A comment.\n"):
        os.utime(template)
        jobs, _ = plan(repo)
    assert jobs == Counter(["numbers", "check_paper", "pdf", "all"])


def test_a_changed_parameter_runs_the_cells_of_its_method_alone(repo):
    def change(text: str) -> str:
        return text.replace("h2o: {title: H2O,", "h2o: {title: H2O, stride: 3,")

    with edited(repo / "config.yaml", change):
        jobs, cells = plan(repo)
    assert cells == {H2O}
    assert set(jobs) == {"cell", *DEPENDENTS}
    assert jobs["cell"] == 1


def test_a_title_runs_no_cell(repo):
    with edited(repo / "config.yaml", lambda text: text.replace("title: H2O,", "title: H2O two,")):
        jobs, _ = plan(repo)
    assert set(jobs) == DEPENDENTS


def test_records_of_other_code_do_not_count(repo, made):
    """Own notes of Snakemake, but the records are someone else's, measured by another H2O."""
    mine = repo / made[H2O]
    theirs = mine.with_name("B20p-0123456789.json")
    shutil.copy(mine, theirs)
    with away(mine):
        _, cells = plan(repo)
    theirs.unlink()
    assert cells == {H2O}


def test_weights_and_texts_may_be_gone_once_the_cells_are_there(repo):
    (text,) = (repo / "results/text").glob("license-*.txt")
    with away(repo / "results/models/tiny-llama"), away(text):
        assert plan(repo) == (Counter(), set())


def test_weights_and_texts_that_are_gone_come_before_the_cell_that_needs_them(repo, made):
    (text,) = (repo / "results/text").glob("license-*.txt")
    with (
        away(repo / "results/models/tiny-llama"),
        away(text),
        away(repo / made[H2O]),
    ):
        jobs, cells = plan(repo)
    assert cells == {H2O}
    assert jobs["cell"] == jobs["download_model"] == jobs["verify_model"] == jobs["text"] == 1


def test_a_text_of_one_s_own_that_changes_makes_again_what_used_it(repo, made):
    with edited(repo / "LICENSE", lambda text: text.replace("Apache", "Apacke", 1)):
        _, cells = plan(repo)
    assert cells == cells_of(made)
    assert plan(repo) == (Counter(), set())


def test_another_study_measures_equal_cells_no_second_time(repo):
    (repo / "second.yaml").write_text("study: second\nmethods: {h2o: {stride: 3}}\n")
    result = snakemake(repo, "--dry-run", configs=(TINY, "second.yaml"))
    assert result.returncode == 0, result.stdout
    cells = re.findall(rf"^    output: ({CELLS}/\S+)$", result.stdout, re.MULTILINE)
    assert list(map(place, cells)) == [H2O]


def test_a_gpu_that_is_asked_for_and_absent_stops_at_once(repo, made, monkeypatch):
    (repo / "gpu.yaml").write_text("device: cuda\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cell = made[H2O]
    with away(repo / cell):
        result = snakemake(repo, configs=(TINY, "gpu.yaml"))
    assert result.returncode != 0
    assert "device: cuda is asked for, and there is no CUDA device" in result.stdout
    # With all measured, the paper can be built on a laptop.
    result = snakemake(repo, cell, configs=(TINY, "gpu.yaml"))
    assert "Nothing to be done" in result.stdout


def test_text_in_the_config_reaches_no_shell(repo):
    name = "x'; touch pwned; $(touch pwned) `touch pwned` {touch} \\input{pwned}"
    (repo / name).write_text("In the beginning.\n")
    study = {
        "study": "hostile",
        "haystack": "h",
        "haystacks": {"h": {"source": "file", "path": name}},
    }
    (repo / "hostile.yaml").write_text(yaml.safe_dump(study))
    text = f"results/text/h-{text_identity('h', study['haystacks']['h'], repo)[:10]}.txt"
    result = snakemake(repo, text, configs=(TINY, "hostile.yaml"))
    assert result.returncode == 0, result.stdout
    assert (repo / text).read_text() == "In the beginning.\n"
    assert not list(repo.rglob("pwned"))


def test_a_text_that_is_not_there_stops_at_once_and_is_named(repo):
    (repo / "gone.yaml").write_text(
        "study: gone\nhaystack: h\nhaystacks: {h: {source: file, path: gone.txt}}\n"
    )
    result = snakemake(repo, configs=(TINY, "gone.yaml"))
    assert result.returncode != 0
    assert "haystack h: file gone.txt does not exist; put it there" in result.stdout
    assert "Building DAG" not in result.stdout


def test_a_paper_of_the_development_split_does_not_take_the_place_of_the_paper(repo):
    result = snakemake(repo, "--dry-run", "--printshellcmds", "--config", "split=development")
    assert result.returncode == 0, result.stdout
    assert "latexmk" in result.stdout
    assert "paper/main.pdf" not in result.stdout


def test_a_misspelt_key_stops_at_once_and_is_named(repo):
    (repo / "misspelt.yaml").write_text("sampels: {contexts: 1}\n")
    result = snakemake(repo, configs=(TINY, "misspelt.yaml"))
    assert result.returncode != 0
    assert "unknown key 'sampels' at the top level, did you mean 'samples'?" in result.stdout
    assert "Traceback" not in result.stdout
    assert "Building DAG" not in result.stdout


def test_a_cell_outside_the_study_is_refused(repo):
    result = snakemake(repo, f"{CELLS}/niah_single/L800/h2o/B30p-0123456789.json")
    assert result.returncode != 0
    assert "B30p-0123456789.json is no result of study 'tiny'" in result.stdout


def test_a_failure_is_reported_with_the_command_that_runs_it_again(repo):
    folder = repo / "my studies"
    folder.mkdir()
    (repo / "bad.txt").write_bytes(b"In the beginning\xff\n")
    entry = {"source": "file", "path": "bad.txt"}
    study = {"study": "broken", "haystack": "bad", "haystacks": {"bad": entry}}
    (folder / "broken.yaml").write_text(yaml.safe_dump(study))
    text = f"results/text/bad-{text_identity('bad', entry, repo)[:10]}.txt"
    result = snakemake(repo, text, configs=(TINY, "my studies/broken.yaml"))
    assert result.returncode != 0
    page = (repo / "results/broken/failures.md").read_text()
    assert "bad.txt is not UTF-8" in page
    (command,) = re.findall(r"^    (snakemake .*)$", page, re.MULTILINE)
    assert command == (
        f"snakemake --configfile {TINY} 'my studies/broken.yaml' --cores 1 --resources gpu=1"
        f" -- {text}"
    )
    words = [sys.executable, "-m", *shlex.split(command)]
    again = subprocess.run(words, cwd=repo, capture_output=True, text=True)
    assert "bad.txt is not UTF-8" in again.stdout + again.stderr


def test_the_full_study_can_be_planned(repo):
    result = snakemake(repo, "--dry-run", "--quiet", configs=("workflow/studies/full.yaml",))
    assert result.returncode == 0, result.stdout
