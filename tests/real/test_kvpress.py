"""Every press that a study may name works in the peers' environment, on a tiny model."""

import re
import subprocess
from pathlib import Path

import peers
import pytest
import torch

from kvbudget.policies.registry import method
from kvbudget.sources.download import download
from kvbudget.sources.load import load
from kvbudget.sources.registry import Random

pytestmark = pytest.mark.real

PYTHON = peers.required()
TOKENS, BUDGET = 400, 100
PLAIN = {"arguments": {}, "safeguard": 1.0}
PRESSES = {
    **{
        name: {"press": name, **PLAIN} for name in method("kvpress").options["press"].schema["enum"]
    },
    "AdaKV": {**PLAIN, "press": "KnormPress", "safeguard": 0.2},
    # Above the budgets at which it is SnapKV.
    "pyramid": {**PLAIN, "press": "PyramidKVPress", "arguments": {"window_size": 4}},
}
MASKED = {"AdaKV", "KVzipPress", "KVgradPress"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    model = tmp_path_factory.mktemp("kvpress") / "tiny"
    download("tiny", Random(), model)
    return model


@pytest.fixture(scope="module")
def context(model) -> dict:
    vocabulary = load(model, "float32", "cpu")[0].config.vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (TOKENS + 12,), generator=generator).tolist()
    question = {"ids": ids[TOKENS:-4], "answers": [ids[-4:], ids[-8:-4]], "max_new_tokens": 3}
    return {"ids": ids[:TOKENS], "budget": BUDGET, "questions": [question, question]}


@pytest.fixture(scope="module")
def results(model, context) -> dict[str, dict]:
    asked = [{"press": press, "contexts": [context]} for press in PRESSES.values()]
    return dict(zip(PRESSES, peers.ask(PYTHON, model, asked), strict=True))


@pytest.mark.parametrize("name", PRESSES)
def test_it_keeps_the_budget_and_answers_alike_when_asked_again(name, model, results):
    result = results[name]
    config = load(model, "float32", "cpu")[0].config
    heads = config.num_hidden_layers * config.num_key_value_heads
    kept = sum(map(sum, result["slots"]))
    assert kept == pytest.approx(BUDGET * heads, rel=0.01)
    token_bytes = 2 * 4 * config.head_dim
    if name in MASKED:  # and KVzip's tensors are views of those that held the repetition, too
        assert result["allocated_bytes"] >= TOKENS * heads * token_bytes
    else:
        assert result["allocated_bytes"] == kept * token_bytes
    first, again = result["answers"]
    assert first["tokens"] == again["tokens"] and len(first["tokens"]) == 3
    assert first["log_likelihoods"] == pytest.approx(again["log_likelihoods"], abs=1e-4)
    assert len(result["decode_s"]) == 4 and result["prefill_s"] > 0
    if name == "pyramid":
        assert result["slots"][0] > result["slots"][-1]


def test_what_a_press_draws_depends_on_no_context_before(model, context, results):
    """Compactor sketches keys by a random matrix."""
    other = context | {"ids": context["ids"][::-1]}
    asked = {"press": PRESSES["CompactorPress"], "contexts": [other, context]}
    *_, again = peers.ask_all(PYTHON, model, [asked])[0]
    assert again["answers"] == results["CompactorPress"]["answers"]


def test_the_lines_of_the_guide_run(model, tmp_path):
    """Those of kvpress, which stand beside ours in `docs/kvpress.md`."""
    page = (peers.ROOT / "docs/kvpress.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r'^```python title="kvpress"\n(.*?)^```$', page, re.DOTALL | re.MULTILINE)
    (tmp_path / "LICENSE").write_text((peers.ROOT / "LICENSE").read_text()[:600])
    (tmp_path / "results/models").mkdir(parents=True)
    (tmp_path / "results/models/smollm2-135m").symlink_to(model)
    code = f"{lines}\nassert len(answers) == len(questions) == 2"
    done = subprocess.run([PYTHON, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
