"""The bench runs on a tiny model; its figures mean nothing there, but its ratios must be ratios."""

import csv
import json

import pytest
import torch
from tiny import tiny_model

from kvbudget import attach
from kvbudget.paper.bench import TITLES, figure, table
from kvbudget.run.bench import decode, parts, peak, prefill, subjects
from kvbudget.run.bench.fill import fill
from kvbudget.run.bench.measure import Found, Lengths, in_turn
from kvbudget.run.bench.size import sizes
from kvbudget.run.bench.timing import Turn, interleaved
from kvbudget.sources.random import byte_tokenizer


def test_what_is_compared_takes_turns():
    order = []
    turn = {name: Turn(lambda name=name: order.append(name)) for name in "ab"}
    turn["b"] = Turn(turn["b"].run, before=lambda: order.append("-"))
    assert set(interleaved(turn, 2)) == {"a", "b"}
    assert order == ["a", "-", "b"] * 3


@pytest.fixture(scope="module")
def found():
    """All measurements of a tiny model at two lengths."""
    model = attach(tiny_model("llama"))
    lengths = Lengths(decode=(200, 400), prefill=(90,), memory=(), parts=(200,), rounds=1)
    found = Found("tiny")
    for rows in in_turn(model, lengths):
        found.add("float32", rows)
    for tokens in (600, 1200):
        with torch.inference_mode():
            found.add("float32", [peak.reading_of(model, "head-aware", tokens)])
    found.left_out = {subjects.PACKED: "not installed"}
    return json.loads(json.dumps(found.told(), allow_nan=False))


def rows_at(found: dict, tokens: int) -> dict[str, dict]:
    return {row["subject"]: row for row in found["rows"] if row["tokens"] == tokens}


def test_steps_are_ratios_of_one_run(found):
    rows = rows_at(found, 200)
    assert rows.keys() - {subjects.PACKED} == {*subjects.OURS, "alone", "stock", "stock-pressed"}
    for row in rows.values():
        ratio = row["step_ms"] / rows["stock"]["step_ms"]
        assert row["step_over_stock"] == pytest.approx(ratio)
        assert row["step_over_alone"] == pytest.approx(row["step_ms"] / rows["alone"]["step_ms"])
        assert row["step_over_floor"] > 0


def test_bytes_are_those_of_the_caches(found):
    for tokens in (200, 400):
        rows = rows_at(found, tokens)
        token = 4 * 3 * 2 * 16 * 4  # layers, KV heads, keys and values, head dimension, bytes
        assert rows["stock"]["allocated_bytes"] == tokens * token
        assert rows["stock-pressed"]["allocated_bytes"] == tokens * token // 5
        assert rows["full-4bit"]["allocated_bytes"] < rows["full"]["allocated_bytes"] / 3
        for name in subjects.EVICTING:
            row = rows[name]
            packed = name == "head-aware-4bit"
            assert row["planned_bytes"] == tokens * token // 5 // (2 if packed else 1)
            assert row["over_plan"] == row["allocated_bytes"] / row["planned_bytes"]
        assert rows["full"]["planned_bytes"] is rows["stock"]["planned_bytes"] is None


def test_prefill_is_measured_whole_and_in_pieces(found):
    rows = rows_at(found, 90)
    assert rows["stock"]["prefill_over_stock"] == 1
    assert rows["stock"]["pieces_over_whole"] is None
    assert all(rows[name]["pieces_over_whole"] > 0 for name in subjects.OURS)


def test_parts_add_up_to_a_step_and_leave_no_timers():
    model = attach(tiny_model("llama"))
    with torch.inference_mode():
        rows = parts.measure(model, 200, ("head-aware",))
    assert {"stock", "head-aware"} == {row["subject"] for row in rows}
    own = {row["part"] for row in rows if row["subject"] == "head-aware"}
    assert {"feed-forward", "cache: attention", "cache: storing it", "rest"} <= own
    assert "cache: copying all tokens" not in own
    assert all(row["ms"] >= 0 for row in rows)
    assert not any("forward" in vars(module) for module in model.modules())
    for owner, name, _ in parts._CALLS:
        assert getattr(owner, name).__name__ == name


def test_a_part_counts_without_the_parts_in_it(monkeypatch):
    now = iter([0.0, 1.0, 4.0, 10.0])
    monkeypatch.setattr(parts, "perf_counter", lambda: next(now))
    clock = parts.Clock()
    inner = clock.timed("inner", lambda: None)
    clock.timed("outer", inner)()
    assert clock.seconds == {"inner": 3.0, "outer": 7.0}


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
@torch.inference_mode()
def test_a_filled_cache_decodes_as_one_that_has_read(kind):
    """Of the same sizes, at the same position, layer by layer."""
    model = attach(tiny_model(kind))
    names = (*subjects.OURS, "stock")
    read, filled = ([_empty(model, name) for name in names] for _ in "rf")
    for cache in read:
        prefill.read(model, torch.randint(5, 90, (1, 120)), cache)
    fill(model, [(cache, 120) for cache in filled])
    for one, other in zip(read, filled, strict=True):
        assert other.get_seq_length() == one.get_seq_length() == 120
        decode.step(model, other).before()
        decode.step(model, other).run()
        decode.step(model, one).before()
        decode.step(model, one).run()
        assert sizes(one, 4)["allocated_bytes"] == sizes(other, 4)["allocated_bytes"]


def _empty(model, name: str):
    return subjects.stock(model) if name == "stock" else subjects.ours(model, name)


@torch.inference_mode()
def test_the_peak_of_a_process_is_taken_in_a_process_of_its_own(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    row = peak.measure(tmp_path, "float32", "head-aware", 700)
    assert (row["tokens"], row["subject"]) == (700, "head-aware")
    assert row["peak_bytes"] > 50 * 2**20  # Python with torch, whatever it read
    assert 0 <= row["peak_above_start_bytes"] < row["peak_bytes"]


def test_a_package_that_is_missing_is_said_to_be(monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("You need to install optimum-quanto")

    monkeypatch.setattr(subjects, "QuantizedCache", missing)
    made, left_out = subjects.theirs(tiny_model())
    assert subjects.PACKED not in made
    assert "pip install '.[bench]'" in left_out[subjects.PACKED]


def test_the_packed_cache_of_transformers_is_not_for_sliding_windows():
    _, left_out = subjects.theirs(tiny_model("gemma2"))
    assert "sliding" in left_out[subjects.PACKED]


def test_tables_say_what_was_measured_and_what_was_left_out(found):
    told = table.report(found)
    lines = told.splitlines()
    rows = [line for line in lines if line.startswith("| float32")]
    assert len(rows) == len(found["rows"])
    assert all(line.count("|") == lines[0].count("|") for line in rows)
    assert lines[-1] == f"{TITLES[subjects.PACKED]}: left out. not installed"
    assert "| cache: attention |" in told
    assert "over plan" in lines[0]


def test_the_csv_file_has_a_line_for_each_row(found, tmp_path):
    table.write_csv(found, tmp_path / "bench.csv")
    lines = list(csv.DictReader((tmp_path / "bench.csv").open()))
    assert len(lines) == len(found["rows"])
    assert {line["model"] for line in lines} == {"tiny"}
    assert float(lines[0]["step_ms"]) == pytest.approx(found["rows"][0]["step_ms"])


def test_the_figure_shows_what_was_measured_at_two_lengths(found, tmp_path):
    for file in ("one.svg", "two.svg"):
        figure.write(found, tmp_path / file)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()  # of the same numbers the same bytes
    assert text.count('id="axes_') == 3


def test_there_is_no_figure_of_one_length(found, tmp_path):
    figure.write(found | {"rows": list(rows_at(found, 200).values())}, tmp_path / "one.svg")
    assert not (tmp_path / "one.svg").exists()
