"""From records to CSV files: what is refused, and that numbers are what they should be."""

import json
import math
import re

import numpy as np
import pytest
import synthetic

from kvbudget.analysis import schema
from kvbudget.analysis.aggregate import aggregate
from kvbudget.analysis.records import budget_token, load_study
from kvbudget.analysis.statistics import Estimate, holm, mean_interval, paired_p, verdict
from kvbudget.errors import UserError


@pytest.fixture
def study(tmp_path):
    return synthetic.make(tmp_path)


def run(study, **options):
    results = study.parent.parent
    out = study.parent / "csv"
    aggregate(study, out, results / "models", study.parent / "profiles", **options)
    return out


def a_cell(study, method="h2o"):
    cells = load_study(study).cells
    return next(c for c in cells if c.method == method and c.task == "niah_single")


def edit(study, cell, change):
    """Change a record on disk."""
    file = load_study(study).record_file(cell)
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def refusal(study, **options):
    with pytest.raises(UserError) as error:
        run(study, **options)
    return str(error.value)


def mended_by(message, cell, force=True):
    """Whether the message has the command that measures this cell.

    The targets come right after `--cores 1`: Snakemake would take a path that follows an option of
    many values, such as `--forcerun` or `--configfile`, for one of those.
    """
    path = re.escape(cell.path)
    forced = rf"--forcerun (\S+ )*{path} (\S+ )*" if force else r"((?!--forcerun).)*"
    command = re.compile(
        rf"snakemake {forced}--cores 1 (\S+ )*{path}|"
        rf"snakemake --configfile \S+ {forced}--cores 1 (\S+ )*{path}"
    )
    return any(command.search(line) for line in message.splitlines())


# --- what is refused


def test_missing_cells_are_all_named(study):
    cells = [a_cell(study, "h2o"), a_cell(study, "full")]
    for cell in cells:
        load_study(study).record_file(cell).unlink()
    message = refusal(study)
    assert message.count("no record") == 2
    assert all(mended_by(message, cell, force=False) for cell in cells)
    assert "--forcerun" not in message


def test_a_draft_may_lack_cells(study):
    cell = a_cell(study)
    load_study(study).record_file(cell).unlink()
    out = run(study, draft=True)
    assert list(schema.read(out, "missing")["path"]) == [cell.path]


def test_unequal_bytes(study):
    cell = a_cell(study, "streaming-llm")

    def more(record):
        record["memory"]["cache_bytes_planned"] = int(
            record["memory"]["cache_bytes_planned"] * 1.03
        )

    edit(study, cell, more)
    message = refusal(study)
    assert "equal budgets must plan equal bytes" in message
    assert mended_by(message, cell)


def test_bytes_within_tolerance_pass(study):
    def more(record):
        record["memory"]["cache_bytes_planned"] = int(
            record["memory"]["cache_bytes_planned"] * 1.015
        )

    edit(study, a_cell(study), more)
    run(study)


def test_wrong_length(study):
    cell = a_cell(study)
    edit(study, cell, lambda r: r["samples"][3].update(prompt_tokens=round(cell.length * 1.02)))
    message = refusal(study)
    assert "over 1% off" in message and mended_by(message, cell)


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_nll_that_is_not_finite(study, value):
    cell = a_cell(study)
    edit(study, cell, lambda r: r["samples"][0].update(nll=value))
    message = refusal(study)
    assert "nll of" in message and mended_by(message, cell)


@pytest.mark.parametrize("part, name", [("memory", "peak_rss_bytes"), ("timing", "prefill_s")])
def test_costs_that_are_not_finite(study, part, name):
    cell = a_cell(study)
    edit(study, cell, lambda r: r[part].update({name: math.nan}))
    assert f"{name} is nan" in refusal(study)


def test_other_code(study):
    cell = a_cell(study)
    edit(study, cell, lambda r: r.update(code="other"))
    message = refusal(study)
    assert "other code" in message and mended_by(message, cell)


def test_mixed_code_digests(study):
    """Plan and record agree, but two cells of one policy and task do not."""
    plan = json.loads(study.read_text())
    cell = a_cell(study)
    next(c for c in plan["cells"] if c["path"] == cell.path)["code"] = "other"
    study.write_text(json.dumps(plan))
    edit(study, cell, lambda r: r.update(code="other"))
    message = refusal(study)
    assert "mixes code digests" in message and mended_by(message, cell)


def test_other_spec(study):
    cell = a_cell(study)
    edit(study, cell, lambda r: r["spec"].update(seed=2))
    message = refusal(study)
    assert "seed was 2, the plan has 1" in message and mended_by(message, cell)


def test_other_weights(study):
    cell = a_cell(study)
    edit(study, cell, lambda r: r["provenance"].update(model_sha256="b" * 64))
    assert "measured with weights bbbb" in refusal(study)


def test_other_questions(study):
    cell = a_cell(study)
    edit(study, cell, lambda r: r["samples"][0].update(id="another"))
    message = refusal(study)
    assert "asked other questions" in message
    assert len([line for line in message.splitlines() if "asked other" in line]) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 9}'])
def test_what_is_no_record(study, text):
    cell = a_cell(study)
    load_study(study).record_file(cell).write_text(text)
    message = refusal(study)
    assert cell.path in message and mended_by(message, cell)


def test_a_profile_with_nan(study):
    file = study.parent / "profiles" / "tiny_a.json"
    profile = json.loads(file.read_text())
    profile["heads"]["retrieval"][0][0] = math.nan
    file.write_text(json.dumps(profile))
    message = refusal(study)
    assert str(file) in message and "--forcerun" in message


def test_no_plan(tmp_path):
    with pytest.raises(UserError, match="snakemake"):
        aggregate(tmp_path / "study.json", tmp_path / "csv")


# --- what comes out


def test_every_table_is_written_and_read_back(study):
    out = run(study)
    for table, columns in schema.TABLES.items():
        assert list(schema.read(out, table).columns) == list(columns)


def test_cells_hold_what_the_record_says(study):
    cell = a_cell(study)
    record = json.loads(load_study(study).record_file(cell).read_text())
    rows = schema.read(run(study), "cells")
    mine = rows[
        (rows["task"] == cell.task)
        & (rows["length"] == cell.length)
        & (rows["method"] == cell.method)
        & (rows["budget"] == cell.budget)
    ].set_index("metric")
    scores = [s["score"] for s in record["samples"]]
    assert mine.loc["score", "value"] == pytest.approx(np.mean(scores))
    assert mine.loc["score", "ci_low"] <= mine.loc["score", "value"] <= mine.loc["score", "ci_high"]
    assert mine.loc["score", ["n_samples", "n_contexts"]].tolist() == [12, 6]
    assert mine.loc["prefill_s", "value"] == record["timing"]["prefill_s"]
    assert "peak_cuda_bytes" not in mine.index


def test_comparisons_are_paired_by_context(study):
    out = run(study)
    frame = schema.read(out, "comparisons")
    row = frame[(frame["kind"] == "baseline") & (frame["metric"] == "nll")].iloc[0]
    plan = load_study(study)

    def means(method):
        cell = next(
            c
            for c in plan.cells
            if (c.model, c.task, c.length, c.method) == (*row[["model", "task", "length"]], method)
            and c.budget == row["budget"]
        )
        samples = json.loads(plan.record_file(cell).read_text())["samples"]
        contexts = sorted({s["context_id"] for s in samples})
        return np.array(
            [np.mean([s["nll"] for s in samples if s["context_id"] == c]) for c in contexts]
        )

    expected = means(row["method"]) - means(row["reference"])
    assert row["difference"] == pytest.approx(expected.mean())
    assert row["n_contexts"] == 6
    assert (frame["p_holm"] >= frame["p"]).all()


def test_kinds_of_comparison(study):
    frame = schema.read(run(study), "comparisons")
    pairs = frame.groupby("kind")[["method", "reference"]].agg(set)
    assert pairs.loc["baseline", "method"] == {"head-aware"}
    assert pairs.loc["baseline", "reference"] == {"h2o", "streaming-llm"}
    assert pairs.loc["ablation", "reference"] == {"head-aware"}
    assert pairs.loc["full", "reference"] == {"full"}


def test_a_place_where_the_full_cache_fails_is_no_headline(study):
    for cell in load_study(study).cells:
        if cell.policy == "full" and cell.task == "niah_single":
            edit(study, cell, lambda r: [s.update(score=0.0) for s in r["samples"]])
    frame = schema.read(run(study), "comparisons")
    assert not frame.loc[frame["task"] == "niah_single", "headline"].any()
    assert frame.loc[frame["task"] == "perplexity", "headline"].all()


def test_allocation_shares_have_mean_one(study):
    frame = schema.read(run(study), "allocation")
    means = frame.groupby(["task", "length", "method", "budget"])["share"].mean()
    assert means.to_numpy() == pytest.approx(1.0)
    assert set(frame["class"]) <= {"retrieval", "induction", "local"}


def test_aggregation_is_reproducible(study):
    out = run(study)
    first = {file.name: file.read_bytes() for file in out.iterdir()}
    assert {file.name: file.read_bytes() for file in run(study).iterdir()} == first


# --- statistics


def test_budget_tokens():
    assert [budget_token(b) for b in ("20%", 256, None)] == ["20p", "256", "full"]


def test_interval_of_equal_values_is_a_point():
    assert mean_interval(np.ones(6), 1) == Estimate(1.0, 1.0, 1.0, 6)


def test_one_context_has_no_interval():
    estimate = mean_interval(np.array([0.5]), 1)
    assert estimate.value == 0.5 and math.isnan(estimate.low)
    assert verdict(estimate, True) == "unclear"


def test_interval_covers_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        estimate = mean_interval(rng.normal(size=40), 1)
        hits += estimate.low <= 0 <= estimate.high
    assert 85 <= hits <= 100


def test_permutation_is_exact_for_few_contexts():
    assert paired_p(np.arange(1.0, 7), np.zeros(6), 1) == pytest.approx(2 / 2**6)
    assert paired_p(np.ones(6), np.ones(6), 1) == 1.0


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])


@pytest.mark.parametrize(
    "low, high, better", [(0.1, 0.2, "better"), (-0.2, -0.1, "worse"), (-0.1, 0.1, "unclear")]
)
def test_verdict_follows_the_direction_of_the_metric(low, high, better):
    estimate = Estimate((low + high) / 2, low, high, 6)
    opposite = {"better": "worse", "worse": "better", "unclear": "unclear"}
    assert verdict(estimate, higher_is_better=True) == better
    assert verdict(estimate, higher_is_better=False) == opposite[better]


def test_no_verdict_from_few_contexts():
    """Five pairs agree by chance in 1 of 16 cases, too often for a 95% interval."""
    assert verdict(Estimate(0.5, 0.4, 0.6, 5), higher_is_better=True) == "unclear"
