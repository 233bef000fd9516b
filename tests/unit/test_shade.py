"""One context token by token: which is shown, and which tokens each head keeps of it."""

import base64
import dataclasses
from pathlib import Path

import homes
import numpy as np
import pytest
import synthetic
from specs import task

from kvbudget import cli
from kvbudget.run.cell import run_cell
from kvbudget.run.shade import Shown, shade, texts
from kvbudget.sources.load import load
from kvbudget.study import shade as plan
from kvbudget.study.plan import load_study

SPEC = {
    "model": "tiny",
    "dtype": "float32",
    "seed": 1,
    "split": "test",
    "haystack": "license",
    "task": task("niah_multikey", "niah", needles=4),
    "length": 800,
    "budget": "20%",
    "samples": {"contexts": 1, "questions": 2},
}
METHODS = {
    "h2o": {"name": "h2o", "policy": "h2o"},
    "streaming-llm": {"name": "streaming-llm", "policy": "streaming-llm"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A tiny model, verified, and a haystack."""
    return homes.with_text(tmp_path_factory.mktemp("shade"))


@pytest.fixture(scope="module")
def shaded(home) -> dict:
    shown = [
        Shown(spec={**SPEC, "method": method}, calibration=None, path=f"{name}.json")
        for name, method in METHODS.items()
    ]
    return shade(shown, home / "tiny", home / "text.txt")


def kept(shaded: dict, number: int) -> np.ndarray:
    """Whether each token is kept, `(layers, kv_heads, tokens)`."""
    coded = shaded["methods"][number]["kept"]
    flags = [
        [np.unpackbits(np.frombuffer(base64.b64decode(each), np.uint8)) for each in layer]
        for layer in coded
    ]
    return np.array(flags, dtype=bool)[..., : len(shaded["tokens"])]


@pytest.mark.parametrize(("number", "name"), list(enumerate(METHODS)))
def test_each_head_keeps_as_many_as_in_the_record_of_the_cell(home, shaded, number, name, tmp_path):
    spec = {**SPEC, "method": METHODS[name]}
    record = run_cell(homes.cell(home, tmp_path / "cell.json", spec))
    assert kept(shaded, number).sum(axis=-1).tolist() == record["allocation"]["slots"]
    assert shaded["layers"] == record["allocation"]["layers"]
    assert shaded["context"] == record["samples"][0]["context_id"]
    assert shaded["methods"][number]["record"] == f"{name}.json"


def test_streaming_llm_keeps_the_first_tokens_and_the_last(shaded):
    (flags,) = np.unique(kept(shaded, 1).reshape(-1, len(shaded["tokens"])), axis=0)
    recent = flags.sum() - 4
    assert flags[:4].all() and flags[-recent:].all()


def test_what_the_question_asks_for_is_marked(shaded):
    assert len(shaded["marked"]) == len(shaded["reference"])
    for (first, end), reference in zip(shaded["marked"], shaded["reference"], strict=True):
        assert reference in "".join(shaded["tokens"][first:end])
        assert reference not in "".join(shaded["tokens"][first + 1 : end])


@pytest.mark.parametrize("text", ["In the beginning", "Señor, ça va? 你好 🙂.", "a\n\n b\t c"])
def test_texts_of_tokens_are_together_the_text_of_all(home, text):
    _, tokenizer = load(home / "tiny", "float32")
    ids = tokenizer.encode(text, add_special_tokens=False)
    found = texts(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == tokenizer.decode(ids)


# --- which context


@pytest.fixture
def study(tmp_path):
    return load_study(synthetic.make(tmp_path))


def test_the_shortest_prompt_at_the_budget_that_most_methods_have(study):
    found = plan.of_study(study)
    assert {cell.key[:3] for cell in found.cells} == {("tiny_a", "niah_single", 500)}
    assert {cell.budget for cell in found.cells} == {"20p"}
    assert [cell.method for cell in found.cells] == ["h2o", "streaming-llm", "head-aware"]


def test_a_study_that_evicts_nothing_shows_none(study):
    full = tuple(cell for cell in study.cells if cell.policy == "full")
    assert plan.of_study(dataclasses.replace(study, cells=full)) is None


def test_another_result_of_a_method_makes_it_another_file(study):
    before = plan.of_study(study)
    cells = [dataclasses.replace(cell, identity=cell.identity[::-1]) for cell in study.cells]
    after = plan.of_study(dataclasses.replace(study, cells=tuple(cells)))
    assert before.path != after.path
    assert before.path.startswith("results/synthetic/shade-")


def test_what_is_missing_is_told_in_one_line(study, capsys):
    file = next((study.root / study.directory).glob("study-*.json"))
    (study.root / "results/models/tiny_a.verified.json").unlink()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["shade", "--plan", str(file)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "error: results/models/tiny_a.verified.json is missing; make it with: snakemake --cores 1"
        " --resources gpu=1 -- results/models/tiny_a.verified.json"
    )
