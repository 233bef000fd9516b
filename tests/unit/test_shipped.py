"""Calibrations that come with the package."""

import gc
import json
import warnings
import weakref

import pytest
import torch
from tiny import tiny_calibration, tiny_model

from kvbudget import api, attach, cli, make_cache, shipped
from kvbudget.policies.fitted import Fitted
from kvbudget.sources.download import download
from kvbudget.sources.load import load
from kvbudget.sources.registry import Random

IDS = torch.arange(2, 62)[None]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    return tmp_path


def kept(model, cache) -> list:
    model(IDS, past_key_values=cache)
    return [[own.tolist() for own in cache.kept_positions(layer)] for layer in range(4)]


def test_a_model_is_known_by_its_weights_in_either_dtype():
    model = tiny_model("llama").to(torch.bfloat16)
    name = shipped.name_of(model)
    assert shipped.name_of(model.float()) == name
    assert shipped.name_of(tiny_model("llama", seed=1)) != name
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] += 1
    assert shipped.name_of(model) != name


def test_a_cache_takes_the_calibration_that_is_shipped(folder):
    model = attach(tiny_model("llama"))
    with pytest.warns(UserWarning, match="no calibration of this model"):
        fallback = make_cache(model, "head-aware", 20)
    calibration = tiny_calibration(4, 3, 6)
    (folder / shipped.name_of(model)).write_bytes(shipped.packed(calibration))
    given = make_cache(model, "head-aware", 20, calibration=calibration)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = make_cache(model, "head-aware", 20)
    fallback, given, found = (kept(model, cache) for cache in (fallback, given, found))
    assert given == found != fallback


def test_what_is_shipped_is_the_same_bytes_for_the_same_calibration():
    calibration = tiny_calibration(2, 3, 6)
    packed = shipped.packed(calibration)
    assert packed == shipped.packed(json.loads(json.dumps(calibration)))
    assert len(packed) < len(json.dumps(calibration))


def test_what_comes_with_the_package_serves_every_allocation_that_needs_no_curves():
    files = sorted(shipped.FOLDER.glob("*.json.gz"))
    assert files
    for file in files:
        fitted = Fitted(shipped._read(file))
        layers, kv_heads = len(fitted.record["layers"]), fitted.record["kv_heads"]
        fitted.check(layers, kv_heads)
        assert len(fitted.scorers("group")) == layers
        assert fitted.scorers("group")[0].weights.shape[1] == kv_heads
        assert fitted.spread("group")(0.2).mean() == pytest.approx(0.2, abs=0.02)
        assert len(fitted.classes) == layers * kv_heads


def test_what_a_cache_needs_of_a_model_is_worked_out_once(folder, monkeypatch):
    """And again for another calibration, or another model; it goes with the model."""
    model, calls = attach(tiny_model("llama")), []
    (folder / shipped.name_of(model)).write_bytes(shipped.packed(tiny_calibration(4, 3, 6)))

    def counted(name):
        inner = getattr(api, name)
        monkeypatch.setattr(api, name, lambda *args: calls.append(name) or inner(*args))

    counted("rotations_of")
    counted("Fitted")
    scorers = [make_cache(model, "head-aware", 20).plan.policy.scorers for _ in range(2)]
    assert scorers[0] is scorers[1]
    assert sorted(calls) == ["Fitted", "rotations_of"]
    other = tiny_calibration(4, 3, 6, seed=1)
    again = make_cache(model, "head-aware", 20, calibration=other)
    assert kept(model, again) != kept(model, make_cache(model, "head-aware", 20))
    assert sorted(calls) == ["Fitted", "Fitted", "Fitted", "rotations_of"]
    make_cache(attach(tiny_model("llama", seed=1)), "head-aware", 20, calibration=other)
    assert sorted(calls) == ["Fitted"] * 4 + ["rotations_of"] * 2
    gone = weakref.ref(model)
    del model, again, scorers
    gc.collect()
    assert gone() is None


def test_a_command_puts_a_calibration_where_a_cache_finds_it(folder, tmp_path, capsys):
    directory, file = tmp_path / "tiny", tmp_path / "heads.json"
    download("tiny", Random(), directory)
    model, _ = load(directory, "float32")
    config = model.config
    sizes = (config.num_hidden_layers, config.num_key_value_heads, config.num_attention_heads)
    head_dim = config.hidden_size // config.num_attention_heads
    file.write_text(json.dumps(tiny_calibration(*sizes, head_dim=head_dim)))
    assert shipped.calibration_of(model) is None
    cli.main(["ship", str(directory), str(file), "--into", str(folder)])
    said = capsys.readouterr().out
    assert str(folder / shipped.name_of(model)) in said
    found = shipped.calibration_of(model)
    assert found is shipped.calibration_of(model)
    assert set(found) == {"layers", "kv_heads", "classes", "shares", "scorer"}
    make_cache(attach(model), "head-aware", 20)

    other = json.dumps(tiny_calibration(sizes[0] + 1, *sizes[1:], head_dim=head_dim))
    for content, complaint in [
        ("{", "is no calibration"),
        ("[]", "is no calibration"),
        ('{"layers": []}', "has no 'scorer'; make it anew with kvbudget calibrate"),
        (other, "make the calibration anew for this model"),
    ]:
        file.write_text(content)
        with pytest.raises(SystemExit, match="2"):
            cli.main(["ship", str(directory), str(file), "--into", str(folder)])
        assert complaint in capsys.readouterr().err
