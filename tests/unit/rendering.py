"""Renders a made-up study as the workflow does: each file from what it is declared to need."""

import importlib
import re
import shutil
import subprocess
from pathlib import Path

import synthetic

from kvbudget.analysis.aggregate import aggregate
from kvbudget.paper import numbers, registry, source
from kvbudget.paper.plots import style
from kvbudget.study.plan import load_study

PAPER = Path(__file__).parents[2] / "paper"


def build(root, settings=None, draft=False):
    """A study made, aggregated and rendered under `root`; returns (source, generated folder)."""
    return render(root, synthetic.make(root, settings), draft)


def render(root, study, draft=False):
    """Tables and numbers of a made study, in a folder of paper/ as the workflow has it."""
    csv = study.parent / "csv"
    aggregate(load_study(study), csv, draft)
    generated = root / "paper" / study.parent.name
    for name in table_names(source.load(study, csv)):
        made, experiment = registry.table(name)
        text = importlib.import_module(made.module).text(
            source.load(study, csv, made.csv), *experiment
        )
        write(generated / "tables" / f"{name}.tex", text)
    text = numbers.text(source.load(study, csv, registry.NUMBERS.csv))
    write(generated / "numbers.tex", text)
    return source.load(study, csv), generated


def copied(src, root):
    """A rendered study and all that was made of it under another root, as `build` returns it."""
    shutil.copytree(src.study.root, root, dirs_exist_ok=True)
    study = root / plan_of(src).relative_to(src.study.root)
    return source.load(study, study.parent / "csv"), root / "paper" / study.parent.name


def table_names(src):
    """Names of all tables of a study."""
    experiments = [f"experiments/{experiment['name']}" for experiment in src.study.experiments]
    return experiments + [name for name in registry.TABLES if name != "experiments"]


def plan_of(src):
    """The file of a study's plan."""
    return src.study.root / src.study.directory / "study-0.json"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def draw(src, generated):
    """All figures."""
    study = plan_of(src)
    for name, made in registry.FIGURES.items():
        own = source.load(study, src.directory, made.csv)
        module = importlib.import_module(made.module)
        style.save(module, own, generated / "figures" / f"{name}.pdf")


def with_prose(generated):
    """The sources beside the generated folder; returns their folder."""
    paper = generated.parent
    shutil.copytree(PAPER / "sections", paper / "sections")
    for name in ("main.tex", "references.bib"):
        shutil.copy(PAPER / name, paper / name)
    return paper


def typeset(generated):
    """Compile as the workflow does; returns (process, the text of the log)."""
    name = generated.name
    flags = ["-pdf", "-interaction=nonstopmode", "-halt-on-error", "-emulate-aux-dir"]
    flags.append(f"-usepretex=\\def\\generated{{{name}}}")
    done = subprocess.run(
        ["latexmk", *flags, f"-outdir={name}", f"-auxdir={name}/.latex", "main.tex"],
        cwd=generated.parent,
        env={"SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1", "PATH": "/usr/bin:/bin"}
        | {"HOME": str(generated)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, (generated / ".latex/main.log").read_text(encoding="latin-1")


def overfull(log):
    """By how many points the widest line is too wide."""
    return max(map(float, re.findall(r"Overfull \\hbox \(([\d.]+)pt", log)), default=0)


def values(generated):
    """The numbers of numbers.tex by key."""
    text = (generated / "numbers.tex").read_text()
    return dict(re.findall(r"^\\setres\{([^}]*)\}\{(.*)\}$", text, re.MULTILINE))
