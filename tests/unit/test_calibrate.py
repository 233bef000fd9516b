"""The command with which a user calibrates a model of their own."""

import json
from pathlib import Path

import pytest

from kvbudget import attach, cli, make_cache
from kvbudget.sources.download import download
from kvbudget.sources.load import load
from kvbudget.sources.registry import Random
from kvbudget.sources.text import build


def test_a_model_is_calibrated_and_its_cache_made_with_what_comes_out(tmp_path, capsys):
    model, text, out = tmp_path / "tiny", tmp_path / "text.txt", tmp_path / "heads.json"
    download("tiny", Random(), model)
    build({"source": "file", "path": str(Path(__file__).parents[2] / "LICENSE")}, text)
    command = ["calibrate", str(model), "--text", str(text), "--out", str(out)]
    options = ["length=400", "contexts=1", "tasks=[recall]", "scorer_lengths=[300]"]
    cli.main([*command, "--set", *options])
    how, fit = capsys.readouterr().out.splitlines()[-2:]
    found = json.loads(out.read_text())
    assert str(out) in how
    for share, kept in found["scorer"]["group"]["kept"].items():
        assert 0 < kept <= 1 and f"{kept:.0%} at {share}" in fit
    assert found["calibration"]["tasks"] == ["recall"]
    loaded, tokenizer = load(model, "float32")
    cache = make_cache(attach(loaded), "head-aware", 40, calibration=found)
    ids = tokenizer("In the beginning " * 20, return_tensors="pt").input_ids
    loaded(ids.to(loaded.device), past_key_values=cache)
    kept = [len(head) for layer in cache.budgeted for head in layer.kept_positions()]
    assert sum(kept) == 40 * len(kept)

    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, "--set", "lenght=400"])
    assert "unknown option 'lenght', did you mean 'length'" in capsys.readouterr().err
