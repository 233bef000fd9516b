"""The notebook runs against a finished study."""

from pathlib import Path

import nbformat
import pytest
import synthetic
from nbclient import NotebookClient

from kvbudget.analysis.aggregate import aggregate
from kvbudget.study.plan import load_study

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "what_heads_do.ipynb"


@pytest.mark.parametrize(
    "heads", [True, False], ids=["with calibration", "without head-aware cells"]
)
def test_notebook_runs(tmp_path, monkeypatch, heads):
    settings = synthetic.config()
    if not heads:
        for experiment in settings["experiments"]:
            experiment["methods"] = ["full", "h2o"]
    study = synthetic.make(tmp_path, settings)
    aggregate(load_study(study), study.parent / "csv")
    monkeypatch.setenv("KVBUDGET_STUDY", settings["study"])
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    images = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(images) >= (5 if heads else 3)


def test_notebook_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
