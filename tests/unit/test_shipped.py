"""Calibrations that come with the package."""

import json
import warnings

import pytest
import torch
from tiny import tiny_calibration, tiny_model

from kvbudget import attach, make_cache, shipped


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped.importlib.resources, "files", lambda package: tmp_path)
    return tmp_path


def test_a_model_is_known_by_its_weights_in_either_dtype():
    model = tiny_model("llama").to(torch.bfloat16)
    name = shipped.name_of(model)
    assert shipped.name_of(model.float()) == name
    assert shipped.name_of(tiny_model("llama", seed=1)) != name
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] += 1
    assert shipped.name_of(model) != name


def test_a_cache_takes_the_calibration_that_is_shipped(folder):
    model = attach(tiny_model("llama"))
    ids = torch.arange(2, 62)[None]
    with pytest.warns(UserWarning, match="no calibration of this model"):
        fallback = make_cache(model, "head-aware", 20)
    calibration = {**tiny_calibration(4, 3, 6), "calibration": {"prompts": 1}}
    (folder / shipped.name_of(model)).write_bytes(shipped.packed(calibration))
    given = make_cache(model, "head-aware", 20, calibration=calibration)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = make_cache(model, "head-aware", 20)
    kept = []
    for cache in (fallback, given, found):
        model(ids, past_key_values=cache)
        kept.append([[own.tolist() for own in cache.kept_positions(layer)] for layer in range(4)])
    assert kept[1] == kept[2] != kept[0]


def test_what_is_shipped_is_the_same_bytes_for_the_same_calibration():
    calibration = {**tiny_calibration(2, 3, 6), "calibration": {}}
    packed = shipped.packed(calibration)
    assert packed == shipped.packed(json.loads(json.dumps(calibration)))
    assert len(packed) < len(json.dumps(calibration))
