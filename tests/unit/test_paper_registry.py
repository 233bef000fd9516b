"""One table, one figure at a time: what is declared is what is read, and nothing else counts."""

import dataclasses
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
import rendering
import synthetic

from kvbudget import cli
from kvbudget.paper import numbers, registry, shown, source
from kvbudget.study import provenance

ROOT = Path(__file__).parents[2]
MADE = {**registry.TABLES, **registry.FIGURES, "numbers": registry.NUMBERS}


@pytest.fixture
def study(rendered):
    return rendering.plan_of(rendered[0])


class Recording(source.Source):
    """A source that notes which CSV files are asked for."""

    read: set[str]

    def table(self, name):
        self.read.add(name)
        return super().table(name)


def make(made, src):
    """The text or figure of a declaration."""
    module = importlib.import_module(made.module)
    if made is registry.NUMBERS:
        return numbers.text(src)
    if hasattr(module, "draw"):
        return module.draw(src)
    return module.text(src, *(["lengths"] if made is registry.TABLES["experiments"] else []))


@pytest.mark.parametrize("name", MADE)
def test_what_is_declared_is_what_is_read(study, name, monkeypatch):
    made, filled = MADE[name], []
    load = jinja2.PackageLoader.get_source

    def noted(self, environment, template):
        filled.append(template)
        return load(self, environment, template)

    monkeypatch.setattr(jinja2.PackageLoader, "get_source", noted)
    monkeypatch.setattr(shown, "LEAST_TASKS", 1)
    own = source.load(study, study.parent / "csv", made.csv)
    src = Recording(own.study, own.directory, own.tables)
    object.__setattr__(src, "read", set())
    assert make(made, src) is not None
    assert src.read == set(made.csv)
    assert filled == ([made.template] if made.template else [])


def test_what_is_not_declared_cannot_be_read(study):
    src = source.load(study, study.parent / "csv", ())
    with pytest.raises(LookupError, match=r"cells\.csv is read but not declared"):
        make(dataclasses.replace(registry.FIGURES["quality"], csv=()), src)


@pytest.mark.parametrize("name", MADE)
def test_code_of_one_does_not_count_for_another(name):
    reached = provenance.reachable([MADE[name].module])
    others = {made.module for made in MADE.values()} - {MADE[name].module}
    assert not reached & (others | {"kvbudget.paper.registry"})
    assert not any(module.startswith("kvbudget.cli") for module in reached)


def test_planning_with_the_registry_is_quick():
    code = (
        "import sys; from kvbudget.paper import registry;"
        "assert not {'torch', 'matplotlib', 'pandas', 'jinja2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", registry.FIGURES)
def test_each_figure_has_a_caption_in_the_report(name):
    text = (ROOT / "workflow/report/figure.rst").read_text()
    said = jinja2.Template(text).render(snakemake={"wildcards": {"figure": name}}).strip()
    assert said.endswith(".") and "\n" not in said and "  " not in said


def test_every_template_is_someones():
    names = {made.template for made in MADE.values() if made.template}
    folder = ROOT / "src/kvbudget/paper/templates"
    assert {path.name for path in folder.iterdir()} == names


# --- the commands


def test_commands_write_what_the_modules_make(study, tmp_path, monkeypatch):
    monkeypatch.chdir(study.parents[2])
    csv = study.parent / "csv"
    cli.main(["table", "experiments/lengths", "--study", str(study), "--out", "a/b.tex"])
    made, experiment = registry.table("experiments/lengths")
    assert experiment == ("lengths",)
    assert Path("a/b.tex").read_text() == make(made, source.load(study, csv, made.csv))
    cli.main(["figure", "quality", "--study", str(study), "--csv", str(csv)])
    assert Path("quality.pdf").read_bytes().startswith(b"%PDF")
    cli.main(["numbers", "--study", str(study)])
    assert r"\setres{study/name}{synthetic}" in Path("numbers.tex").read_text()


def test_the_check_as_a_command(rendered_copy, tmp_path, capsys):
    src, generated = rendered_copy
    paper = rendering.with_prose(generated)
    arguments = ["check-paper", "--paper", paper, "--numbers", generated / "numbers.tex"]
    arguments += ["--csv", src.directory, "--out", tmp_path / "check.txt"]
    tables = sorted(generated.rglob("tables/**/*.tex"))
    cli.main([*map(str, arguments), *map(str, tables)])
    assert "without bare numbers" in (tmp_path / "check.txt").read_text()
    with (src.directory / "pooled.csv").open("a") as file:
        file.write("\n")
    with pytest.raises(SystemExit):
        cli.main([*map(str, arguments), *map(str, tables)])
    found = re.findall(r"(\w+)\.tex: made from another", capsys.readouterr().err)
    assert sorted(found) == ["ablation", "numbers", "statistics", "summary"]


@pytest.mark.parametrize("command, entries", [("table", "TABLES"), ("figure", "FIGURES")])
def test_without_a_name_a_command_lists_them(command, entries, capsys):
    cli.main([command])
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(getattr(registry, entries))


@pytest.mark.parametrize(
    "words, said",
    [
        (["table", "statistic"], "did you mean 'statistics'"),
        (["table", "experiments"], "experiments/NAME"),
        (["table", "statistics/lengths"], "experiments/NAME"),
        (["table", "experiments/length"], "did you mean 'lengths'"),
        (["figure", "qualty"], "did you mean 'quality'"),
    ],
)
def test_a_wrong_name_is_told_in_one_line(study, words, said, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main([*words, "--study", str(study)])
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


def test_no_study_is_told_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["table", "statistics"])
    assert "error: no study; name its plan" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["figure", "quality", "--study", str(tmp_path / "study.json")])
    assert "cannot read the plan" in capsys.readouterr().err


def test_a_csv_file_that_is_missing_is_told(study, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["table", "provenance", "--study", str(study), "--csv", str(tmp_path)])
    assert "models.csv" in capsys.readouterr().err


def test_two_studies_lie_side_by_side(tmp_path):
    """A study is rendered from its own files, whatever else lies there."""
    for name in ("one", "two"):
        settings = synthetic.config(study=name)
        settings["experiments"] = settings["experiments"][:1]
        _, generated = rendering.build(tmp_path, settings)
        assert generated == tmp_path / "paper" / name
    assert rendering.values(tmp_path / "paper/one")["study/name"] == "one"
    assert json.loads((tmp_path / "results/two/study-0.json").read_text())["study"] == "two"
