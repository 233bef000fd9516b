"""One cell on a tiny random model: the record, its repeatability, and going on after a kill."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import homes
import pytest
import torch
from specs import task

from kvbudget import UserError, attach
from kvbudget.cache import files
from kvbudget.calibration.calibrate import calibrate
from kvbudget.run import cell as cells
from kvbudget.run import grouping, protocols, questions
from kvbudget.run.cell import Runner, finished, run_cell
from kvbudget.run.job import Cell
from kvbudget.run.prefill import Prefills, run_prefills
from kvbudget.run.prefills import Store
from kvbudget.sources.haystack import read_passages
from kvbudget.sources.load import load
from kvbudget.study import provenance
from kvbudget.tasks import perplexity

SPEC = {
    "model": "tiny",
    "dtype": "float32",
    "seed": 1,
    "split": "test",
    "haystack": "license",
    "task": task("niah_multikey", "niah", needles=4),
    "length": 800,
    "method": {"name": "h2o", "policy": "h2o"},
    "budget": "20%",
    "samples": {"contexts": 2, "questions": 2},
}
PERPLEXITY = task("perplexity", "perplexity")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A tiny model, verified, and a haystack."""
    return homes.with_text(tmp_path_factory.mktemp("cell"))


def arguments(home: Path, out: Path, **changes) -> Cell:
    calibration = changes.pop("calibration", None)
    return homes.cell(home, out, {**SPEC, **changes}, calibration)


def outcome(record: dict) -> list:
    """What must be the same in every run: everything but times and memory peaks."""
    return [record["spec"], record["samples"], record["allocation"]]


def test_the_record_of_a_cell(home, tmp_path):
    record = run_cell(arguments(home, tmp_path / "cell.json"))
    assert json.loads((tmp_path / "cell.json").read_text()) == record
    identity, *contexts = (tmp_path / "cell.contexts.jsonl").read_text().splitlines()
    provenance = record["provenance"]
    assert json.loads(identity) == {
        "identity": "identity",
        "calibration_sha256": None,
        **{name: provenance[name] for name in ("device", "cpu", "threads", "kernels", "at_once")},
    }
    assert provenance["cpu"] and provenance["calibration_sha256"] is None
    assert len(contexts) == 2
    assert (record["schema"], record["spec"], record["code"]) == (1, SPEC, "digest")
    assert record["identity"] == "identity"
    assert len(record["samples"]) == 4
    assert len({sample["context_id"] for sample in record["samples"]}) == 2
    assert len({sample["id"] for sample in record["samples"]}) == 4
    for sample in record["samples"]:
        assert abs(sample["prompt_tokens"] - 800) <= 8
        assert 0 <= sample["score"] <= 1
        assert sample["nll"] > 0
        assert 0 < sample["depth"][0] < 1
    memory = record["memory"]
    assert memory["cache_bytes_planned"] == pytest.approx(
        0.2 * memory["cache_bytes_full"], rel=0.01
    )
    assert memory["cache_bytes_planned"] < memory["cache_bytes_allocated"]
    assert memory["cache_bytes_allocated"] < 1.2 * memory["cache_bytes_planned"]
    assert memory["peak_rss_bytes"] > 0
    assert record["timing"]["prefill_s"] > 0
    assert record["timing"]["decode_ms_per_token"] > 0
    assert record["provenance"]["versions"]["torch"]


def test_a_cell_whose_budget_is_the_context_s(home, tmp_path):
    """The same questions in the same order; what stands on top of the budget is told apart."""
    method = {"name": "h2o", "policy": "h2o", "bounded": "context"}
    args = {"method": method, "samples": {"contexts": 2, "questions": 3}}
    record = run_cell(arguments(home, tmp_path / "cell.json", **args))
    args["method"] = method | {"bounded": "always"}
    always = run_cell(arguments(home, tmp_path / "always.json", **args))
    memory = record["memory"]
    for mine, theirs in zip(record["samples"], always["samples"], strict=True):
        same = ("id", "context_id", "prompt_tokens", "budget_tokens", "reference", "depth")
        assert [mine[key] for key in same] == [theirs[key] for key in same]
        assert mine["choices"] == theirs["choices"] == 4
        assert mine["choice"] in (0.0, 1.0)
        assert mine["any"] in (True, False)
    planned, allocated = "cache_bytes_planned", "cache_bytes_allocated"
    assert memory[planned] == always["memory"][planned]
    assert memory[allocated] < always["memory"][allocated]  # sums by which tokens go are gone
    assert memory["cache_tokens_on_top"] > 100  # letters of a question
    assert "cache_tokens_on_top" not in always["memory"]
    assert record["timing"]["decode_ms_per_token"] > 0
    assert outcome(
        run_cell(arguments(home, tmp_path / "again.json", **args | {"method": method}))
    ) == (outcome(record))


def test_a_cell_opens_no_connection(home, tmp_path):
    """Not even where nothing in its environment says that it is offline."""
    run = """
import os, runpy, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(9)  # an exception might be caught
sys.addaudithook(refuse)
runpy.run_module("kvbudget", run_name="__main__", alter_sys=True)
"""
    out = tmp_path / "cell.json"
    command = [sys.executable, "-c", run, "cell", "--spec", json.dumps(SPEC)]
    command += ["--code", "digest", "--identity", "identity", "--model-identity", "model"]
    command += ["--model-dir", str(home / "tiny"), "--out", str(out)]
    command += ["--verified", str(home / "tiny.verified.json"), "--text", str(home / "text.txt")]
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_OFFLINE")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert out.exists()


def test_a_model_in_the_place_of_the_one_that_is_meant_is_refused(home, tmp_path):
    cell = dataclasses.replace(arguments(home, tmp_path / "cell.json"), model_identity="another")
    with pytest.raises(UserError, match=r"is of another model than the configuration now means"):
        run_cell(cell)


def test_its_code_is_what_it_computes_with():
    """No edit of the command line, of downloads or of the making of texts makes a cell stale."""
    entries = ["kvbudget.run.cell", "kvbudget.tasks.niah", "kvbudget.policies.head_aware"]
    reached = provenance.reachable([*entries, *protocols.PROTOCOLS.values()])
    others = ("download", "hub", "modelscope", "pypi", "gguf", "text", "lock", "integrity")
    assert not reached & {f"kvbudget.sources.{name}" for name in others}
    assert not any(name.startswith(("kvbudget.cli", "kvbudget.study")) for name in reached)


def test_a_small_share_of_a_long_prompt_is_no_small_budget_in_the_warm_up(home, tmp_path):
    record = run_cell(arguments(home, tmp_path / "cell.json", budget="5%"))
    assert all(25 <= sample["budget_tokens"] <= 40 for sample in record["samples"])


def test_the_same_spec_gives_the_same_samples_and_scores(home, tmp_path):
    first = run_cell(arguments(home, tmp_path / "one.json"))
    assert outcome(run_cell(arguments(home, tmp_path / "two.json"))) == outcome(first)


def test_methods_of_equal_budget_plan_equal_bytes(home, tmp_path):
    spec = {"dtype": "float32", "length": 800, "contexts": 1, "tasks": ["needles", "reading"]}
    model, tokenizer = load(home / "tiny", "float32")
    calibration = calibrate(attach(model), tokenizer, read_passages(home / "text.txt"), spec)
    sha = json.loads((home / "tiny.verified.json").read_text())["sha256"]
    (tmp_path / "calibration.json").write_text(json.dumps({**calibration, "model_sha256": sha}))
    planned = set()
    for policy in ("h2o", "streaming-llm", "kvzip", "kvzip-plus", "head-aware"):
        method = {"name": policy, "policy": policy}
        known = tmp_path / "calibration.json" if policy == "head-aware" else None
        args = arguments(home, tmp_path / f"{policy}.json", method=method, calibration=known)
        record = run_cell(args)
        planned.add(record["memory"]["cache_bytes_planned"])
        slots = [kept for layer in record["allocation"]["slots"] for kept in layer]
        budget = sum(s["budget_tokens"] for s in record["samples"]) / len(record["samples"])
        assert sum(slots) / len(slots) == pytest.approx(budget)
    assert len(planned) == 1


def test_a_cell_goes_on_where_it_was_killed(home, tmp_path):
    """A finished context is not computed again, and a line cut off by the kill is dropped."""
    whole = run_cell(arguments(home, tmp_path / "whole.json"))
    args = arguments(home, tmp_path / "killed.json")
    side = tmp_path / "killed.contexts.jsonl"

    class Killed(Exception):
        pass

    def killed_at_the_second_context(*_, calls=[]):  # noqa: B006 - counts its calls
        calls.append(1)
        if len(calls) == 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvbudget.run.memory.mark_peak", killed_at_the_second_context)
        with pytest.raises(Killed):
            run_cell(args)
    assert not args.out.exists()
    with side.open("a") as log:
        log.write('{"samples": [')
    computed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvbudget.run.memory.mark_peak", lambda: computed.append(1))
        record = run_cell(args)
    assert len(computed) == 1
    assert outcome(record) == outcome(whole)


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_contexts_that_are_asked_together_are_so_again(home, tmp_path, monkeypatch, done):
    """A cell that was killed gives the same record to the bit, and keeps what it has."""
    monkeypatch.setattr(grouping, "ROWS", 4)
    samples = {"contexts": 5, "questions": 2}
    method = {"name": "h2o", "policy": "h2o", "bounded": "context"}
    args = arguments(home, tmp_path / "cell.json", method=method, samples=samples)
    groups = []
    run = questions.run

    def noted(runner, contexts, shared):
        groups.append([context.id[-1] for context in contexts])
        return run(runner, contexts, shared)

    monkeypatch.setattr(questions, "run", noted)
    whole = run_cell(args)
    assert groups == [["0", "1"], ["2", "3"], ["4"]]
    side = args.out.with_suffix(".contexts.jsonl")
    kept = side.read_text().splitlines(keepends=True)[: 1 + done]
    side.write_text("".join(kept))
    groups.clear()
    assert outcome(run_cell(args)) == outcome(whole)
    assert groups == [["0", "1"], ["2", "3"], ["4"]][done // 2 :]
    assert side.read_text().startswith("".join(kept))


def test_times_beside_other_measurements_are_not_recorded(home, tmp_path, monkeypatch):
    alone = run_cell(arguments(home, tmp_path / "alone.json"))
    monkeypatch.setenv("KVBUDGET_AT_ONCE", "3")
    beside = run_cell(arguments(home, tmp_path / "beside.json"))
    assert outcome(beside) == outcome(alone)
    assert beside["timing"] == dict.fromkeys(alone["timing"])
    assert [each["provenance"]["at_once"] for each in (alone, beside)] == [1, 3]


@pytest.mark.parametrize("other", ["identity", "cpu", "calibration_sha256"])
def test_side_files_of_another_cell_machine_or_calibration_are_not_taken(tmp_path, capsys, other):
    side = tmp_path / "cell.contexts.jsonl"
    basis = {
        "identity": "i",
        "calibration_sha256": "c",
        "device": "cpu",
        "cpu": "X",
        "threads": 2,
        "kernels": "none",
    }
    side.write_text(json.dumps(basis | {other: "old"}) + '\n{"samples": []}\n')
    assert finished(side, basis) == []
    assert side.read_text() == json.dumps(basis) + "\n"
    said = f"rests on {other} old, not {basis[other]}: all contexts are measured again"
    assert said in capsys.readouterr().out
    side.write_text(json.dumps(basis) + '\n{"samples": []}\n')
    assert finished(side, basis) == [{"samples": []}]


def test_a_cell_that_outlived_its_run_writes_where_no_one_reads(tmp_path):
    side, basis = tmp_path / "cell.contexts.jsonl", {"identity": "identity"}
    assert finished(side, basis) == []
    with side.open("a") as survivor:
        survivor.write('{"samples": [1]}\n')
        survivor.flush()
        assert finished(side, basis) == [{"samples": [1]}]
        survivor.write('{"samples": [2]}\n')
    assert finished(side, basis) == [{"samples": [1]}]
    assert list(tmp_path.iterdir()) == [side]


@pytest.mark.parametrize("policy", ["full", "h2o"])
def test_perplexity_reads_the_second_half_through_the_bounded_cache(home, tmp_path, policy):
    budget = None if policy == "full" else 100
    method = {"name": policy, "policy": policy}
    args = arguments(home, tmp_path / "p.json", task=PERPLEXITY, method=method, budget=budget)
    record = run_cell(args)
    assert [sample["score"] for sample in record["samples"]] == [None, None]
    assert all(3 < sample["nll"] < 8 for sample in record["samples"])
    assert record["timing"]["decode_ms_per_token"] is None


def test_chunks_change_nothing_for_a_cache_that_keeps_everything(home, tmp_path):
    losses = []
    for chunk in (16, 800):
        pieces, full = PERPLEXITY | {"chunk": chunk}, {"name": "full", "policy": "full"}
        args = arguments(home, tmp_path / f"{chunk}.json", task=pieces, method=full, budget=None)
        losses.append([sample["nll"] for sample in run_cell(args)["samples"]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@torch.inference_mode()
def test_a_context_in_chunks_never_exceeds_the_budget(home):
    model, tokenizer = load(home / "tiny", "float32")
    method = {"name": "h2o", "policy": "h2o"}
    runner = Runner(attach(model), tokenizer, perplexity, method, "20%", None, chunk=16)
    ids = list(range(5, 205))
    cache = runner.cache(len(ids))
    for piece in runner.pieces(ids):
        runner.read(cache, piece)
        assert all(len(kept) <= 40 for layer in cache.budgeted for kept in layer.kept_positions())
    assert cache.get_seq_length() == 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 5000}, "length 5000 exceeds the 4096 tokens"),
        ({"budget": 6}, "fewer than the 8"),
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
    ],
)
def test_bad_cells_are_named(home, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run_cell(arguments(home, tmp_path / "bad.json", **changes))
    assert not (tmp_path / "bad.json").exists()


def test_a_calibration_of_another_model_is_refused(home, tmp_path):
    (tmp_path / "calibration.json").write_text('{"model_sha256": "another"}')
    with pytest.raises(UserError, match="the calibration of another model"):
        run_cell(arguments(home, tmp_path / "c.json", calibration=tmp_path / "calibration.json"))


# Contexts that were read once for all methods.

PLACE = {key: value for key, value in SPEC.items() if key not in ("method", "budget")}
PLACE |= {"samples": {"contexts": 4, "questions": 2}}


@pytest.fixture(scope="module")
def store(home) -> Path:
    """The contexts of a place, recorded."""
    return recorded(home, home / "store/place")


def recorded(home: Path, out: Path, disk_gb: float = 1, **changes) -> Path:
    signals = ["received:Attention", "received:Window"]
    run_prefills(
        Prefills(
            spec={**PLACE, "signals": signals, **changes},
            model_identity="model",
            model_dir=home / "tiny",
            verified=home / "tiny.verified.json",
            text=home / "text.txt",
            disk_gb=disk_gb,
            store=out.parent,
            out=out,
        )
    )
    return out


def adopting(home: Path, out: Path, store: Path, **changes) -> Cell:
    cell = arguments(home, out, **({"samples": PLACE["samples"]} | changes))
    return dataclasses.replace(cell, prefills=store)


@pytest.mark.parametrize("own", [1, 3])
@pytest.mark.parametrize(
    ("policy", "more"),
    [
        ("h2o", {}),
        ("h2o", {"bounded": "context"}),
        ("streaming-llm", {"bounded": "context"}),
        ("streaming-llm", {}),
        ("kvzip", {}),
        ("kvzip-plus", {}),
        ("snapkv", {"bits": 4}),
        ("snapkv", {"bits": 4, "bounded": "context"}),
    ],
)
def test_a_cell_that_adopts_gives_the_record_of_one_that_reads(
    home, store, tmp_path, policy, more, own
):
    method = {"name": policy, "policy": policy, **more}
    cell = adopting(home, tmp_path / "adopted.json", store, method=method)
    adopted = run_cell(dataclasses.replace(cell, own_contexts=own))
    out = tmp_path / "read.json"
    read = run_cell(dataclasses.replace(cell, prefills=None, out=out))
    assert outcome(adopted) == outcome(read)
    planned = [name for name in read["memory"] if name.startswith("cache")]
    assert all(adopted["memory"][name] == read["memory"][name] for name in planned)
    names = list(dict.fromkeys(sample["context_id"] for sample in read["samples"]))
    assert read["contexts"] == {"read": names, "adopted": []}
    assert adopted["contexts"] == {"read": names[:own], "adopted": names[own:]}


def test_times_and_peaks_are_those_of_the_contexts_that_it_reads(home, store, tmp_path):
    record = run_cell(adopting(home, tmp_path / "cell.json", store))
    _, first, *others = map(json.loads, (tmp_path / "cell.contexts.jsonl").read_text().splitlines())
    assert len(others) == 3
    assert record["timing"]["prefill_s"] == first["timing"]["prefill_s"] > 0
    assert record["memory"]["peak_rss_bytes"] == first["memory"]["peak_rss_bytes"] > 0
    for other in others:
        assert other["timing"]["prefill_s"] is None
        assert other["memory"]["peak_rss_bytes"] is None
        assert other["timing"]["decode_s"]


def test_a_cell_that_was_killed_adopts_what_is_left(home, store, tmp_path):
    cell = adopting(home, tmp_path / "cell.json", store)
    whole = run_cell(cell)
    side = tmp_path / "cell.contexts.jsonl"
    side.write_text("".join(side.read_text().splitlines(keepends=True)[:3]))
    again = run_cell(cell)
    assert outcome(again) == outcome(whole)
    assert again["contexts"] == whole["contexts"]


def test_a_difference_between_reading_and_adopting_is_an_error_that_names_both(
    home, tmp_path, monkeypatch
):
    """Here the values of a layer were written wrongly."""
    write = files.save_file

    def spoilt(tensors, path, metadata):
        write(tensors | {"1.values": tensors["1.values"] + 1e-4}, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", spoilt)
        store = recorded(home, tmp_path / "store/place")
    cell = adopting(home, tmp_path / "cell.json", store)
    message = r"method 'h2o' that reads .* adopts .*0.safetensors differ in the values of layer 1"
    with pytest.raises(UserError, match=message):
        run_cell(cell)
    assert not cell.out.exists()


def test_contexts_for_which_there_is_no_room_are_read(home, store, tmp_path):
    size = (store / "0.safetensors").stat().st_size
    half = recorded(home, tmp_path / "store/place", disk_gb=2.5 * size / 1e9)
    assert sorted(file.name for file in half.iterdir()) == [
        "0.safetensors", "1.safetensors", "prefills.json"
    ]  # fmt: skip
    record = run_cell(adopting(home, tmp_path / "cell.json", half))
    assert outcome(record) == outcome(run_cell(adopting(home, tmp_path / "all.json", store)))
    assert len(record["contexts"]["read"]) == 3
    none = recorded(home, tmp_path / "store/other", disk_gb=2.5 * size / 1e9)
    assert [file.name for file in none.iterdir()] == ["prefills.json"]
    (none / "prefills.json").unlink()  # as where recording fails
    assert Store(none, {}, 1).context(0) is None


def test_a_method_that_a_model_forbids_stops_no_other(home, tmp_path, monkeypatch, capsys):
    def immovable(*args):
        raise UserError("keys cannot be moved")

    monkeypatch.setattr("kvbudget.run.prefill.rotations_of", immovable)
    signals = ["expected_attention:Expected", "received:Attention"]
    store = recorded(home, tmp_path / "store/place", signals=signals)
    assert "not recorded: keys cannot be moved" in capsys.readouterr().out
    assert run_cell(adopting(home, tmp_path / "cell.json", store))["contexts"]["adopted"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda store: (store / "prefills.json").unlink(),
            "holds no recorded contexts, or was cut",
        ),
        (lambda store: (store / "0.safetensors").unlink(), "0.safetensors is not there"),
        (lambda store: os.truncate(store / "0.safetensors", 5000), "cut short or damaged"),
    ],
)
def test_a_damaged_store_is_refused(home, store, tmp_path, spoil, message):
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    spoil(copy)
    with pytest.raises(UserError, match=message):
        run_cell(adopting(home, tmp_path / "cell.json", copy))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "bfloat16"}, "recorded with dtype float32, and this run has bfloat16"),
        ({"seed": 2}, "is of another prompt"),
        ({"length": 700}, "is of another prompt"),
        ({"method": {"name": "tova", "policy": "tova"}}, "does not hold the signal 'newest'"),
        ({"method": SPEC["method"] | {"prefill_chunk": 64}}, "prefill_chunk: 64 evicts while"),
    ],
)
def test_a_store_of_something_else_is_refused(home, store, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run_cell(adopting(home, tmp_path / "cell.json", store, **changes))


def test_a_store_of_another_model_or_machine_is_refused(home, store, tmp_path, monkeypatch):
    real = cells.facts
    for name in ("model", "device", "threads", "torch"):

        def other(*args, name=name):
            return real(*args) | {name: "another"}

        monkeypatch.setattr(cells, "facts", other)
        with pytest.raises(UserError, match=f"recorded with {name} .*, and this run has another"):
            run_cell(adopting(home, tmp_path / "cell.json", store))


def test_a_cell_reads_one_context_at_least(home, store, tmp_path):
    cell = adopting(home, tmp_path / "cell.json", store)
    with pytest.raises(UserError, match="own_contexts must be 1 or more"):
        run_cell(dataclasses.replace(cell, own_contexts=0))
