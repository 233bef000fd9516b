"""Results in README and the guides are those of the archives of published studies."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from publishing import ROOT, folder, measure, planned, publish

from kvbudget.site import costs, markdown
from kvbudget.study import expand
from kvbudget.study.config import read
from kvbudget.study.plan import Study


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder like the repository, in which the tiny study is published."""
    return folder(tmp_path)


def by_method(study: Study, part: str) -> dict[str, Any]:
    """A part of the records of the needle at 800 tokens, before they are published."""
    return {
        cell.method: json.loads((study.root / cell.path).read_text())[part]
        for cell in study.cells
        if cell.key[1:3] == ("niah_single", 800)
    }


def test_nothing_is_published(root):
    assert markdown.of_all(root) == markdown.NOTHING


def test_each_number_is_one_of_the_records(root):
    study = planned(read("tiny", ROOT), root)
    measure(study)
    records = by_method(study, "samples")
    publish(study)
    text = markdown.of_all(root)
    assert text.startswith("## Study `tiny`\n\n9 of 9 planned cells, 2 contexts each")
    titles = ["Quality and memory by length", "What each part adds", "Translation while reading"]
    assert all(f"\n### {title}\n" in text for title in titles)
    (lengths, *_) = text.split("### ")[1:]
    common, head, _, row = (line for line in lengths.split("\n")[1:] if line)
    assert common == "Tiny random Llama, Single needle, 800 tokens, 20%, score / NLL:"
    titles, values = (line.strip("| ").split(" | ") for line in (head, row))
    assert titles == ["Baseline (full cache, GPE)", "H2O", "StreamingLLM", "Head-Aware"]
    for method, value in zip(("full", "h2o", "streaming-llm", "head-aware"), values, strict=True):
        score, nll = (sum(each[name] for each in records[method]) / 2 for name in ("score", "nll"))
        assert value == f"{score:.2f} / {nll:.3f}"
    assert markdown.in_short("tiny", "lengths", root) == "\n".join(lengths.strip().split("\n")[2:])


def test_of_several_tasks_the_shortest_prompts_are_told_in_short(root):
    file = root / "workflow/studies/tiny.yaml"
    study = yaml.safe_load(file.read_text())
    study["experiments"][0] |= {"tasks": ["niah_single", "niah_multikey"], "lengths": [800, 900]}
    file.write_text(yaml.safe_dump(study))
    study = planned(read("tiny", root), root)
    measure(study)
    publish(study)
    common, _, _, _, *rows = markdown.in_short("tiny", "lengths", root).split("\n")
    assert common == "Tiny random Llama, 800 tokens, 20%, score / NLL:"
    assert [row.split(" | ")[0] for row in rows] == ["| Single needle", "| One of four needles"]


def test_many_methods_stand_in_rows_with_the_bytes_that_they_hold(root, monkeypatch):
    study = planned(read("tiny", ROOT), root)
    measure(study)
    memory = by_method(study, "memory")
    publish(study)
    (columns, *_) = markdown.of_study("tiny", root).split("### ")[1:]
    monkeypatch.setattr(markdown, "_WIDE", 3)
    (rows, *_) = markdown.of_study("tiny", root).split("### ")[1:]
    before, after = (
        [line.strip("| ").split(" | ") for line in text.strip().split("\n")[4:]]
        for text in (columns, rows)
    )
    head, _, *lines = after
    assert head == ["method", "score / NLL", "bytes held"]
    titles, _, values = before
    assert [line[:2] for line in lines] == [list(each) for each in zip(titles, values, strict=True)]
    for line, name in zip(lines, ("full", "h2o", "streaming-llm", "head-aware"), strict=True):
        share = memory[name]["cache_bytes_allocated"] / memory[name]["cache_bytes_full"]
        assert line[2] == f"{share:.0%}"


def test_many_methods_at_several_budgets_have_a_table_for_each_place(root, monkeypatch):
    file = root / "workflow/studies/tiny.yaml"
    study = yaml.safe_load(file.read_text())
    study["experiments"][0] |= {"lengths": [800, 900], "budgets": ["20%", "40%"]}
    file.write_text(yaml.safe_dump(study))
    study = planned(read("tiny", root), root)
    measure(study)
    publish(study)
    monkeypatch.setattr(markdown, "_WIDE", 3)
    parts = markdown.of_experiment("tiny", "lengths", root).split("\n\n")
    assert [part for part in parts if not part.startswith("|")] == [
        f"Tiny random Llama, Single needle, {length} tokens, score / NLL:" for length in (800, 900)
    ]
    for table in parts[1::2]:
        head, _, *rows = table.split("\n")
        assert head == "| method | 20% | 40% | bytes held |"
        assert len(rows) == 4


def test_costs_are_told_where_times_were_taken(root):
    study = planned(read("tiny", ROOT), root)
    measure(study)
    for cell in study.cells:
        if cell.method == "h2o":
            record = json.loads((study.root / cell.path).read_text())
            record["timing"] = dict.fromkeys(record["timing"])
            (study.root / cell.path).write_text(json.dumps(record))
    memory, timing = by_method(study, "memory"), by_method(study, "timing")
    publish(study)
    where, _, head, _, *rows = costs.of_experiment("tiny", "lengths", root).split("\n")
    assert where.startswith("Tiny random Llama, Single needle, 800 tokens, on ")
    assert head.startswith("| method | budget | reading (s) | a step (ms) | cache (MiB) | peak of ")
    named = {"full": "Baseline (full cache, GPE)", "streaming-llm": "StreamingLLM"}
    named["head-aware"] = "Head-Aware"
    for row, (method, title) in zip(rows, named.items(), strict=True):
        told = row.strip("| ").split(" | ")
        assert told[0] == title
        assert told[2] == f"{timing[method]['prefill_s']:.2f}"
        assert told[4] == f"{memory[method]['cache_bytes_allocated'] / 2**20:.1f}"
        assert told[5] == f"{memory[method]['peak_rss_bytes'] / 2**20:.0f}"


def test_an_order_is_told_with_its_verdicts(root):
    file = root / "workflow/studies/tiny.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["experiments"][0]["orders"] = [["h2o", "streaming-llm"]]
    file.write_text(yaml.safe_dump(settings))
    study = planned(read("tiny", root), root)
    measure(study)
    samples = by_method(study, "samples")
    publish(study)
    common, _, head, _, row = markdown.of_orders("tiny", study.experiments[0]["name"], root).split(
        "\n"
    )
    assert common == "Tiny random Llama, Single needle, 800 tokens, 20%, score / NLL:"
    assert head == "| pair | score / NLL |"
    pair, told = row.strip("| ").split(" | ")
    assert pair == "H2O before StreamingLLM"
    score, nll = (
        sum(one[name] - other[name] for one, other in zip(*order, strict=True)) / 2
        for name in ("score", "nll")
        for order in [(samples["h2o"], samples["streaming-llm"])]
    )
    assert told == f"{score:+.2f} unclear / {nll:+.3f} unclear"


def test_nothing_is_left_where_it_is_read(root):
    study = planned(read("tiny", ROOT), root)
    measure(study)
    publish(study)
    markdown.of_study("tiny", root)
    assert [path.name for path in (root / "results/published").iterdir()] == ["tiny.tar.xz"]
    assert expand.expand(read("tiny", ROOT), root).published
