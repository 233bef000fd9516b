"""The notebooks run: on a finished study, and on a tiny model where `make smoke` leaves one."""

import json
from pathlib import Path

import nbformat
import pytest
import synthetic
from homes import LICENSE
from nbclient import NotebookClient

from kvbudget.analysis.aggregate import aggregate
from kvbudget.sources.download import download
from kvbudget.sources.registry import Random
from kvbudget.sources.text import build
from kvbudget.study.plan import load_study

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
OF_STUDY = "what_heads_do"
OF_MODEL = [name for name in NOTEBOOKS if name != OF_STUDY]


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    """A process of its own, in another folder: it draws inline, and runs this code."""
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent / "src"))


def run(name: str, at: Path) -> list[dict]:
    """Run a notebook in a folder, as it stands. Returns what its cells put out."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(at)}}).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def images(outputs: list[dict]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize(
    "heads", [True, False], ids=["with calibration", "without head-aware cells"]
)
def test_that_of_a_study_runs(tmp_path, monkeypatch, heads):
    settings = synthetic.config()
    if not heads:
        for experiment in settings["experiments"]:
            experiment["methods"] = ["full", "h2o"]
    study = synthetic.make(tmp_path, settings)
    aggregate(load_study(study), study.parent / "csv")
    monkeypatch.setenv("KVBUDGET_STUDY", settings["study"])
    assert images(run(OF_STUDY, tmp_path)) >= (5 if heads else 3)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A folder like a clone after `make smoke`; a layer of its model has a sliding window."""
    root = tmp_path_factory.mktemp("clone")
    download("smollm2-135m", Random(architecture="gemma3"), root / "results/models/smollm2-135m")
    build({"source": "file", "path": str(LICENSE)}, root / "results/text/kjv-0.txt")
    (root / "LICENSE").write_text(LICENSE.read_text()[:2000])
    (root / "notebooks").mkdir()
    return root


@pytest.mark.parametrize("name", OF_MODEL)
def test_those_of_a_model_run(name, clone):
    outputs = run(name, clone / "notebooks")
    assert images(outputs) >= 1
    assert any("text/html" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_they_are_stored_without_outputs(name):
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert notebook["metadata"].keys() == {"kernelspec", "language_info"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_another_model_or_study_is_one_line_at_the_top(name):
    cells = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells
    first = next(cell.source for cell in cells if cell.cell_type == "code")
    assert first.startswith('STUDY = "' if name == OF_STUDY else 'MODEL = "')


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_guide_tells_of_each(name):
    assert f"| `{name}` |" in (FOLDER.parent / "docs/notebooks.md").read_text(encoding="utf-8")
