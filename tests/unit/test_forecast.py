"""What a study costs, from its plan alone and from its first finished cells."""

import dataclasses
import datetime
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from test_study import REPO, expand, load

from kvbudget.sources.registry import Size
from kvbudget.study import forecast
from kvbudget.study.plan import Study

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def study(tmp_path) -> Study:
    """The full study, with nothing on disk."""
    return expand(load("full"), tmp_path)


def finish(study, cells, seconds, device="cpu", at_once=1):
    """Leave the part of a record that a forecast reads."""
    for cell in cells:
        file = study.root / cell.path
        file.parent.mkdir(parents=True, exist_ok=True)
        end = START + datetime.timedelta(seconds=seconds(cell))
        when = {"started": START.isoformat(), "finished": end.isoformat()}
        when |= {"device": device, "at_once": at_once}
        contexts = {"read": ["name"] * read_by(cell), "adopted": []}
        file.write_text(json.dumps({"provenance": when, "contexts": contexts}))


def read_by(cell) -> int:
    """Contexts that a cell reads where none were recorded."""
    return cell.spec["samples"]["contexts"]


def work(cell, size) -> np.ndarray:
    return forecast.work(cell, size, read_by(cell))


def test_the_full_study_before_anything_is_there(study):
    """In a process of its own, which shows that no torch is needed."""
    code = (
        "import sys; from kvbudget.cli import main; main(['plan', 'full']);"
        "sys.exit('torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO
    )
    assert f"{len(study.cells)} cells, valid" in run.stdout
    assert re.search(r"llama3.1-8b +meta-llama/Llama-3.1-8B-Instruct +yes +no +16.1", run.stdout)
    assert "HF_TOKEN" in run.stdout
    assert "https://huggingface.co/google/gemma-2-9b-it" in run.stdout
    assert "Hours: unknown" in run.stdout


def test_memory_by_hand():
    llama = Size(parameters=8, layers=32, query_heads=32, kv_heads=8, head_dim=128)
    assert forecast.cache_bytes(llama, 20_000, 2) == 20_000 * 131_072
    slid = Size(
        parameters=8, layers=4, query_heads=4, kv_heads=1, head_dim=2, sliding_layers=3,
        sliding_window=10,
    )  # fmt: skip
    assert forecast.cache_bytes(slid, 100, 2) == (100 + 3 * 10) * 2 * 2 * 2


def test_hours_follow_from_finished_cells(study, tmp_path):
    known = forecast.sizes(study, tmp_path)
    law = np.array([12.0, 9.0, 30.0, 50.0])

    def seconds(cell):
        return float(work(cell, known[cell.model]) @ law)

    assert forecast.fit(study, known) is None
    finish(study, study.cells[:3], seconds)
    assert forecast.fit(study, known) is None
    finish(study, study.cells[::7], seconds)
    costs = forecast.fit(study, known)
    assert costs.error < 0.02
    for cell in study.cells:
        hours = costs.hours(work(cell, known[cell.model]))
        assert hours == pytest.approx(seconds(cell) / 3600, rel=0.1)
    text = forecast.report(study, tmp_path)
    assert "unknown" not in text
    assert f"fitted on {costs.cells} finished cells" in text


def test_hours_follow_from_cells_of_another_study(study, tmp_path):
    """From small models to large ones, by their weights; each measurement has its share of a GPU,
    and what another device measured is left out."""
    small = expand(load("small"), tmp_path)
    known, large = forecast.sizes(small, tmp_path), forecast.sizes(study, tmp_path)
    law = np.array([2.0, 5.0, 8.0, 20.0])
    share = 3

    def seconds(cell):
        return share * float(work(cell, known[cell.model]) @ law)

    finish(small, small.cells[::5], seconds, device="GPU", at_once=share)
    finish(small, small.cells[1:5], lambda cell: 9 * seconds(cell))
    costs = forecast.fit(small, known)
    for cell in study.cells:
        done = work(cell, large[cell.model])
        assert costs.hours(done) == pytest.approx(done @ law / 3600, rel=0.15)
    text = forecast.report(study, tmp_path, small)
    assert f"{len(small.cells[::5])} finished cells of study small" in text
    assert "(GPU, 3 at once)" in text
    assert "cells of study full are finished" in forecast.report(study, tmp_path)


def test_a_translation_is_written_while_it_is_read(tmp_path):
    """A cell that streams takes far longer than one that asks at the end, and the fit finds it."""
    config = load("streaming")
    config["experiments"][0] |= {"tasks": ["wait_3", "niah_single"], "lengths": [200, 300, 400]}
    study = expand(config, tmp_path)
    known = forecast.sizes(study, tmp_path)
    law = np.array([10.0, 1e4, 1e4, 3e5])

    def seconds(cell):
        return float(work(cell, known[cell.model]) @ law)

    asked, streamed = (
        [cell for cell in study.cells if cell.kind == kind] for kind in ("niah", "streaming")
    )
    for cells in zip(asked, streamed, strict=True):
        less, more = (work(cell, known[cell.model]) for cell in cells)
        assert more[0] == less[0]
        assert more[2] == less[2]
        assert more[3] > 10 * less[3]
    finish(study, study.cells[::3], seconds)
    costs = forecast.fit(study, known)
    assert costs.error < 0.01
    for cell in study.cells:
        hours = costs.hours(work(cell, known[cell.model]))
        assert hours == pytest.approx(seconds(cell) / 3600, rel=0.03)


def test_a_context_that_is_repeated_is_read_twice(study, tmp_path):
    once = study.cells[0]
    spec = {**once.spec, "method": {"name": "zip", "policy": "kvzip"}}
    size = forecast.sizes(study, tmp_path)[once.model]
    one, two = (work(c, size) for c in (once, dataclasses.replace(once, spec=spec)))
    read_again = read_by(once) * once.length * size.parameters / 1e15
    assert (two / one)[[0, 2, 3]].tolist() == [1, 4, 1]
    assert two[1] - one[1] == pytest.approx(read_again)


def test_more_questions_are_more_tokens_and_hardly_more_passes(tmp_path):
    """They are asked together, but where each evicts for itself."""
    cells = {}
    for questions in (1, 16):
        config = load() | {"samples": {"contexts": 4, "questions": questions}}
        config["experiments"] = config["experiments"][:1]
        for bounded in ("context", "always"):
            config["methods"]["h2o"] = config["methods"]["h2o"] | {"bounded": bounded}
            study = expand(config, tmp_path)
            cells[bounded, questions] = next(c for c in study.cells if c.method == "h2o")
    size = forecast.sizes(study, tmp_path)["smollm2-135m"]
    together, alone = (
        work(cells[bounded, 16], size) / work(cells[bounded, 1], size)
        for bounded in ("context", "always")
    )
    assert together[3] == 1
    assert alone[3] == 16
    assert together[1] == alone[1] > 1


def test_a_model_of_unknown_size_is_said_to_be(tmp_path):
    config = load("full")
    del config["models"]["llama3.1-8b"]["size"]
    text = forecast.report(expand(config, tmp_path), tmp_path)
    assert re.search(r"llama3.1-8b .* unknown", text)
    assert "Downloads: at least 26.7 GB" in text


def test_a_verified_model_needs_no_size_and_no_download(tmp_path):
    config = load("full")
    size = config["models"]["qwen2.5-3b"].pop("size")
    verified = {name: size[name] for name in ("layers", "query_heads", "kv_heads", "head_dim")}
    verified |= {"checks": {"parameters": size["parameters"]}, "context": 32768}
    verified |= {"layer_types": ["full_attention"] * size["layers"]}
    (tmp_path / "qwen2.5-3b.verified.json").write_text(json.dumps(verified))
    text = forecast.report(expand(config, tmp_path), tmp_path)
    assert re.search(r"qwen2.5-3b .* no +yes +0 +6.17", text)
    assert "Downloads: 36.5 GB" in text


def test_a_context_that_is_recorded_is_read_once_for_all(tmp_path):
    """Hours are those of a few contexts a cell, and of one recording a place."""
    config = load("full") | {"prefills": {"own_contexts": 1}, "device": "cpu"}
    study = expand(config, tmp_path)
    known = forecast.sizes(study, tmp_path)
    finish(study, study.cells[::7], lambda cell: float(work(cell, known[cell.model]).sum() * 60))
    costs = forecast.fit(study, known)
    with_sharing = forecast.cell_table(study, known, costs)["hours"].sum()
    by_gpu = dataclasses.replace(costs, gpu=True)
    on_gpu = forecast.cell_table(study, known, by_gpu)["hours"].sum()
    config["prefills"] = {"share": "never"}
    study = expand(config, tmp_path)
    without = forecast.cell_table(study, known, costs)["hours"].sum()
    assert with_sharing < 0.6 * without
    assert on_gpu == pytest.approx(without)
    assert "Disk" not in forecast.report(study, tmp_path)


def test_the_disk_that_recorded_contexts_take(tmp_path):
    config = load() | {"prefills": {"own_contexts": 1}}
    config["samples"] = {"contexts": 10}
    study = expand(config, tmp_path)
    size = forecast.sizes(study, tmp_path)["smollm2-135m"]
    most = 10 * forecast.cache_bytes(size, 2000, 4) / 1e9
    assert f"Disk: up to {most:.3g} GB at a time" in forecast.report(study, tmp_path)
    config["prefills"]["disk_gb"] = 0.1
    assert "Disk: up to 0.1 GB" in forecast.report(expand(config, tmp_path), tmp_path)
