"""Cells of kvpress, with a stand-in for the library: what it is asked, and what comes of it."""

import json
import sys
from pathlib import Path

import homes
import pytest
from specs import task

from kvbudget import UserError, make_cache
from kvbudget.run.cell import run_cell
from kvbudget.run.job import Cell
from kvbudget.run.peers.cell import run_peer
from kvbudget.run.peers.environment import GIVEN
from kvbudget.study.config import read
from kvbudget.study.expand import entry_modules, expand
from kvbudget.study.prefills import can_adopt

ROOT = Path(__file__).parents[2]
METHOD = {"press": "SnapKVPress", "arguments": {}, "safeguard": 1.0}
SPEC = {
    "model": "tiny",
    "dtype": "float32",
    "seed": 1,
    "split": "test",
    "haystack": "license",
    "task": task("niah_multikey", "niah", needles=4),
    "length": 800,
    "method": {"name": "peer", "policy": "kvpress", "bounded": "context", **METHOD},
    "budget": "20%",
    "samples": {"contexts": 3, "questions": 2},
}
#: Keeps what StreamingLLM keeps; the class that it is called by is another's.
STAND_IN = """
import contextlib, sys

class SnapKVPress:
    compression_ratio = 0.0

    @contextlib.contextmanager
    def __call__(self, model):
        def cut(module, args, kwargs, output):
            layer = kwargs["past_key_values"].layers[module.layer_idx]
            tokens = layer.keys.shape[2]
            recent = tokens - (int(tokens * (1 - self.compression_ratio)) - 4)
            places = [*range(4), *range(recent, tokens)]
            layer.keys, layer.values = layer.keys[:, :, places], layer.values[:, :, places]

        hooks = [
            layer.self_attn.register_forward_hook(cut, with_kwargs=True)
            for layer in model.model.layers
        ]
        yield
        for hook in hooks:
            hook.remove()

class TOVAPress:
    def __init__(self):
        sys.exit("no such press")

class ObservedAttentionPress: ...
class KVzipPress: ...
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A tiny model, verified, and a haystack."""
    return homes.with_text(tmp_path_factory.mktemp("peers"))


@pytest.fixture(autouse=True)
def python(tmp_path, monkeypatch) -> Path:
    """A Python that has the stand-in."""
    place = tmp_path / "library"
    (place / "kvpress-0.dist-info").mkdir(parents=True)
    (place / "kvpress-0.dist-info/METADATA").write_text("Name: kvpress\nVersion: 0\n")
    (place / "kvpress.py").write_text(STAND_IN)
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{place}" exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv(GIVEN, str(script))
    return script


def cell(home: Path, out: Path, **changes) -> Cell:
    return homes.cell(home, out, {**SPEC, **changes})


def test_a_press_that_keeps_what_ours_keeps_gives_its_record(home, tmp_path):
    record = run_peer(cell(home, tmp_path / "peer.json"))
    assert json.loads((tmp_path / "peer.json").read_text()) == record
    method = {"name": "ours", "policy": "streaming-llm", "positions": "absolute"}
    ours = run_cell(cell(home, tmp_path / "ours.json", method=method | {"bounded": "context"}))
    for mine, theirs in zip(record["samples"], ours["samples"], strict=True):
        assert mine.pop("nll") == pytest.approx(theirs.pop("nll"), abs=1e-4)
        assert mine == theirs
    assert record["allocation"] == ours["allocation"]
    assert record.keys() == ours.keys()
    memory, own = record["memory"], ours["memory"]
    assert memory.pop("cache_bytes_claimed") == memory["cache_bytes_planned"]
    assert memory["cache_bytes_allocated"] == memory["cache_bytes_planned"]
    assert memory.keys() == own.keys()
    for name in ("cache_bytes_planned", "cache_bytes_full", "cache_bytes_on_top"):
        assert memory[name] == own[name]
    assert record["timing"].keys() == ours["timing"].keys()
    assert record["provenance"].keys() == ours["provenance"].keys()
    assert record["provenance"]["versions"]["kvpress"] == "0"
    assert record["contexts"]["adopted"] == []


def test_an_interrupted_cell_asks_for_what_is_missing_alone(home, tmp_path):
    whole = run_peer(cell(home, tmp_path / "peer.json"))
    side = tmp_path / "peer.contexts.jsonl"
    lines = side.read_text().splitlines(keepends=True)
    side.write_text("".join(lines[:2]))
    again = run_peer(cell(home, tmp_path / "peer.json"))
    assert again["samples"] == whole["samples"]
    assert side.read_text().splitlines(keepends=True)[1] == lines[1]


def test_what_fails_is_named(home, tmp_path, python):
    method = {**SPEC["method"], "press": "TOVAPress"}
    with pytest.raises(UserError, match=r"kvpress ended with status 1 at TOVAPress.*leave the"):
        run_peer(cell(home, tmp_path / "peer.json", method=method))
    python.unlink()
    with pytest.raises(UserError, match=r"python is not there.*make peers makes it, or KVBUDGET_"):
        run_peer(cell(home, tmp_path / "peer.json"))


def test_sliding_windows_are_refused(home, tmp_path):
    verified = json.loads((home / "tiny.verified.json").read_text())
    verified["layer_types"][0] = "sliding_attention"
    other = tmp_path / "verified.json"
    other.write_text(json.dumps(verified))
    job = cell(home, tmp_path / "peer.json")
    with pytest.raises(UserError, match="model tiny has layers with a sliding window"):
        run_peer(Cell(**vars(job) | {"verified": other}))


def test_there_is_no_cache_of_it(home):
    from tiny import tiny_model

    from kvbudget import attach

    with pytest.raises(UserError, match="kvpress itself measures"):
        make_cache(attach(tiny_model("llama")), "kvpress", 20)


def study(method: dict, kind: str = "niah_multikey"):
    config = read("tiny", ROOT)
    config["methods"]["peer"] = {"policy": "kvpress", **method}
    config["experiments"] = [
        {**config["experiments"][0], "name": "peers", "tasks": [kind], "methods": ["peer"]}
    ]
    return expand(config, ROOT)


def test_a_study_plans_it_without_our_cache_and_with_all_of_its_arguments():
    arguments = {"press": "ExpectedAttentionPress", "arguments": {"epsilon": 0.01}}
    for planned in study({**arguments, "safeguard": 0.2}).cells:
        assert planned.spec["method"] == {
            "name": "peer",
            "policy": "kvpress",
            "bounded": "context",
            **arguments,
            "safeguard": 0.2,
        }
        assert "kvbudget.run.peers.cell" in entry_modules(planned.spec)
        assert not can_adopt(planned)


@pytest.mark.parametrize(
    ("method", "kind", "message"),
    [
        ({"press": "SnapKV"}, "niah_multikey", "press must be one of SnapKVPress, "),
        ({"bits": 4}, "niah_multikey", "bits is an option of our caches.*drop it"),
        ({"arguments": 3}, "niah_multikey", "arguments must be names with values, not 3"),
        ({}, "perplexity", "compresses a context once.*use a task with questions"),
    ],
)
def test_what_it_cannot_do_is_refused(method, kind, message):
    with pytest.raises(UserError, match=message):
        study(method, kind)
