"""From records to CSV files: what is refused, and that numbers are what they should be."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from rendering import plan_of

from kvbudget.analysis import schema
from kvbudget.analysis.aggregate import aggregate
from kvbudget.analysis.statistics import holm
from kvbudget.errors import UserError
from kvbudget.study.plan import budget_token, load_study


@pytest.fixture
def study(tmp_path):
    return synthetic.make(tmp_path)


@pytest.fixture
def finished(rendered):
    """A study that nobody changes, and its CSV files."""
    src, _ = rendered
    return plan_of(src), src.directory


def run(study, **options):
    out = study.parent / "csv"
    aggregate(load_study(study), out, **options)
    return out


def a_cell(study, method="h2o"):
    cells = load_study(study).cells
    return next(c for c in cells if c.method == method and c.task == "niah_single")


def record_file(study, cell):
    return load_study(study).root / cell.path


def edit(study, cell, change):
    """Change a record on disk."""
    file = record_file(study, cell)
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def refusal(study, **options):
    with pytest.raises(UserError) as error:
        run(study, **options)
    return str(error.value)


def mended_by(message, cell, wrong=True):
    """Whether the message has the command that measures this cell; a wrong record goes first.

    The targets come after `--`: Snakemake would take a path that follows an option of many values,
    such as `--resources` or `--configfile`, for one of those.
    """
    path = re.escape(cell.path)
    gone = rf"rm -f (\S+ )*{path} (\S+ )*&& " if wrong else ""
    command = re.compile(rf"  {gone}snakemake [^&]*--cores 1 [^&]*-- (\S+ )*{path}( \S+)*$")
    return any(command.match(line) for line in message.splitlines())


# --- what is refused


def test_missing_cells_are_all_named(study):
    cells = [a_cell(study, "h2o"), a_cell(study, "full")]
    for cell in cells:
        record_file(study, cell).unlink()
    message = refusal(study)
    assert message.count("no record") == 2
    assert all(mended_by(message, cell, wrong=False) for cell in cells)
    assert "rm -f" not in message


def test_no_cell_at_all(study):
    plan = load_study(study)
    for cell in plan.cells:
        (plan.root / cell.path).unlink()
    assert refusal(study).count("no record") == len(plan.cells)
    message = refusal(study, draft=True)
    assert "has no finished cell" in message and plan.run([]) in message


def test_a_draft_may_lack_cells(study):
    cell = a_cell(study)
    record_file(study, cell).unlink()
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


def test_more_bytes_than_planned(study):
    cell = a_cell(study)

    def more(record):
        record["memory"]["cache_bytes_allocated"] = 2 * record["memory"]["cache_bytes_planned"]

    edit(study, cell, more)
    memory = json.loads(record_file(study, cell).read_text())["memory"]
    message = refusal(study)
    (line,) = [line for line in message.splitlines() if " holds " in line]
    assert cell.path in line
    assert f"holds {memory['cache_bytes_allocated']} bytes" in line
    assert f"planned {memory['cache_bytes_planned']};" in line
    assert mended_by(message, cell)


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


def test_score_that_is_not_finite(study):
    cell = a_cell(study)
    edit(study, cell, lambda r: r["samples"][0].update(score=math.nan))
    message = refusal(study)
    assert "score of" in message and mended_by(message, cell)


def test_bytes_that_are_missing(study):
    cell = a_cell(study)
    edit(study, cell, lambda r: r["memory"].update(cache_bytes_planned=None))
    message = refusal(study)
    assert "cache_bytes_planned is missing" in message and mended_by(message, cell)


@pytest.mark.parametrize("kept", [0, 4])
def test_fewer_contexts_than_planned(study, kept):
    cell = a_cell(study)
    edit(study, cell, lambda r: r.update(samples=r["samples"][:kept]))
    message = refusal(study)
    assert f"holds {kept // 2} contexts, the plan has 12" in message and mended_by(message, cell)


def test_several_problems_are_named_in_one_refusal(study):
    lacking, wrong = a_cell(study, "h2o"), a_cell(study, "full")
    record_file(study, lacking).unlink()
    edit(study, wrong, lambda r: r.update(code="other"))
    message = refusal(study)
    assert mended_by(message, lacking, wrong=False) and mended_by(message, wrong)


@pytest.mark.parametrize("part, name", [("memory", "peak_rss_bytes"), ("timing", "prefill_s")])
def test_costs_that_are_not_finite(study, part, name):
    cell = a_cell(study)
    edit(study, cell, lambda r: r[part].update({name: math.nan}))
    message = refusal(study)
    assert f"{name} is nan" in message and mended_by(message, cell)


def spec_of_seed_two(record):
    record["spec"]["seed"] = 2


@pytest.mark.parametrize(
    "change",
    [lambda r: r.update(code="other"), lambda r: r.update(identity="other"), spec_of_seed_two],
    ids=["code", "identity", "spec"],
)
def test_the_record_of_another_cell(study, change):
    cell = a_cell(study)
    edit(study, cell, change)
    message = refusal(study)
    assert "holds the record of another cell" in message and mended_by(message, cell)


def test_other_weights(study):
    cell = a_cell(study)
    edit(study, cell, lambda r: r["provenance"].update(model_sha256="b" * 64))
    message = refusal(study)
    assert "measured with weights bbbb" in message and mended_by(message, cell)


def test_other_questions(study):
    cell = a_cell(study)
    edit(study, cell, lambda r: r["samples"][0].update(id="another"))
    message = refusal(study)
    assert "asked other questions" in message
    assert len([line for line in message.splitlines() if "asked other" in line]) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 9}'])
def test_what_is_no_record(study, text):
    cell = a_cell(study)
    record_file(study, cell).write_text(text)
    message = refusal(study)
    assert cell.path in message and mended_by(message, cell)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record["heads"]["retrieval"][0].__setitem__(0, math.nan),
        lambda record: record["scorer"]["own"]["kept"].update({"20%": math.nan}),
    ],
)
def test_a_calibration_with_nan(study, spoil):
    plan = load_study(study)
    path = plan.calibrations[0].path
    calibration = json.loads((plan.root / path).read_text())
    spoil(calibration)
    (plan.root / path).write_text(json.dumps(calibration))
    message = refusal(study)
    assert f"calibration {path}: holds a number that is not finite" in message
    assert f"rm {path} && {plan.run([path])}" in message


def test_no_plan(tmp_path):
    with pytest.raises(UserError, match="snakemake"):
        load_study(tmp_path / "study.json")


# --- what comes out


def test_every_table_is_written_and_read_back(finished):
    _, out = finished
    for table, columns in schema.TABLES.items():
        assert list(schema.read(out, table).columns) == list(columns.columns)


def test_the_folder_says_what_every_column_means(finished):
    text = (finished[1] / "README.md").read_text()
    for table, columns in schema.TABLES.items():
        section = text.split(f"## {table}.csv")[1].split("\n## ")[0]
        for name, column in columns.columns.items():
            kind = schema.WORDS[str(column.dtype).partition("[")[0]]
            assert f"| {name} | {kind} | {column.description} |" in section
            assert column.description


def test_the_workflow_makes_every_table():
    rule = (Path(__file__).parents[2] / "workflow/rules/aggregate.smk").read_text()
    listed = re.search(r"^TABLES = \[(.*?)\]", rule, re.DOTALL | re.MULTILINE)[1]
    assert re.findall(r'"(\w+)"', listed) == list(schema.TABLES)


@pytest.mark.parametrize(
    "spoil, named",
    [
        (lambda f: f.assign(metric="scor"), "metric"),
        (lambda f: f.assign(p=1.5), "p"),
        (lambda f: f.assign(difference=np.nan), "difference"),
        (lambda f: f.assign(length=0), "length"),
        (lambda f: f.assign(budget="20%"), "budget"),
        (lambda f: pd.concat([f, f]), "unique"),
        (lambda f: f.drop(columns="p"), "p"),
        (lambda f: f.assign(more=1), "more"),
        (lambda f: f.assign(n_contexts="many"), "n_contexts"),
    ],
)
def test_a_spoilt_file_is_refused(finished, spoil, named, tmp_path):
    whole = pd.read_csv(finished[1] / "comparisons.csv")
    file = tmp_path / "comparisons.csv"
    spoil(whole).to_csv(file, index=False)
    with pytest.raises(UserError, match=named) as error:
        schema.read(tmp_path, "comparisons")
    assert str(file) in str(error.value)


def test_pooled_comparisons_count_every_headline_context_once(finished):
    _, out = finished
    pooled, single = schema.read(out, "pooled"), schema.read(out, "comparisons")
    names = ["model", "experiment", "budget", "method", "reference", "kind", "metric"]
    single = single[single["headline"]]
    weighted = single.assign(total=single["difference"] * single["n_contexts"])
    sums = weighted.groupby(names)[["total", "n_contexts"]].sum()
    sums["places"] = weighted.groupby(names).size()
    assert len(pooled) == len(sums)
    joined = pooled.set_index(names).join(sums.add_suffix("_sum"))
    assert (joined["n_contexts"] == joined["n_contexts_sum"]).all()
    assert (joined["places"] == joined["places_sum"]).all()
    expected = joined["total_sum"] / joined["n_contexts_sum"]
    assert joined["difference"].to_numpy() == pytest.approx(expected.to_numpy())


def test_pooled_comparisons_count_a_context_that_tasks_share_once(tmp_path):
    settings = synthetic.config()
    settings["tasks"] = {f"wait_{k}": {"kind": "streaming", "k": k} for k in (1, 3)}
    settings["experiments"] = [
        settings["experiments"][0]
        | {"tasks": ["wait_1", "wait_3"], "lengths": [500], "methods": ["full", "h2o"]}
    ]
    out = run(synthetic.make(tmp_path, settings))
    (pooled,) = schema.read(out, "pooled").query("metric == 'nll'").to_dict("records")
    single = schema.read(out, "comparisons").query("metric == 'nll'")
    assert len(single) == pooled["places"] == 2
    assert set(single["n_contexts"]) == {pooled["n_contexts"]} == {12}
    assert pooled["difference"] == pytest.approx(single["difference"].mean())


def test_cells_hold_what_the_record_says(finished):
    study, out = finished
    cell = a_cell(study)
    record = json.loads(record_file(study, cell).read_text())
    rows = schema.read(out, "cells")
    mine = rows[
        (rows["task"] == cell.task)
        & (rows["length"] == cell.length)
        & (rows["method"] == cell.method)
        & (rows["budget"] == cell.budget)
    ].set_index("metric")
    scores = [s["score"] for s in record["samples"]]
    assert mine.loc["score", "value"] == pytest.approx(np.mean(scores))
    assert mine.loc["score", "ci_low"] <= mine.loc["score", "value"] <= mine.loc["score", "ci_high"]
    assert mine.loc["score", ["n_samples", "n_contexts"]].tolist() == [24, 12]
    assert mine.loc["prefill_s", "value"] == record["timing"]["prefill_s"]
    assert "peak_cuda_bytes" not in mine.index


def test_agreement_and_bleu_of_translations(tmp_path):
    settings = synthetic.config()
    settings["tasks"]["wait"] = {"kind": "streaming"}
    settings["experiments"] = [
        settings["experiments"][0]
        | {"tasks": ["wait"], "lengths": [500], "methods": ["full", "h2o"]}
    ]
    study = synthetic.make(tmp_path, settings)
    full, h2o = load_study(study).cells

    def answer(record, wrong, output):
        for sample in record["samples"]:
            sample["predictions"] = [0] * wrong + [1] * (10 - wrong)
            sample["output"] = output or sample["reference"][0]

    edit(study, full, lambda record: answer(record, 0, None))
    edit(study, h2o, lambda record: answer(record, 3, "rien"))
    frame = schema.read(run(study), "cells").set_index(["method", "metric"])["value"]
    assert frame["full", "agreement"] == 1
    assert frame["h2o", "agreement"] == pytest.approx(0.7)
    assert frame["full", "bleu"] == pytest.approx(100)
    assert frame["h2o", "bleu"] == 0
    assert 3 < frame["h2o", "al"] < 4 < frame["h2o", "laal"] < 5


def test_comparisons_are_paired_by_context(finished):
    study, out = finished
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
        samples = json.loads((plan.root / cell.path).read_text())["samples"]
        contexts = sorted({s["context_id"] for s in samples})
        return np.array(
            [np.mean([s["nll"] for s in samples if s["context_id"] == c]) for c in contexts]
        )

    expected = means(row["method"]) - means(row["reference"])
    assert row["difference"] == pytest.approx(expected.mean())
    assert row["n_contexts"] == 12
    assert (frame["p_holm"] >= frame["p"]).all()


def test_kinds_of_comparison(finished):
    frame = schema.read(finished[1], "comparisons")
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


def test_allocation_shares_have_mean_one(finished):
    frame = schema.read(finished[1], "allocation")
    means = frame.groupby(["task", "length", "method", "budget"])["share"].mean()
    assert means.to_numpy() == pytest.approx(1.0)
    assert set(frame["class"]) <= {"retrieval", "induction", "local"}


def test_the_fit_of_the_scorer_is_what_calibrations_say(finished):
    frame = schema.read(finished[1], "scorer")
    assert set(frame["model"]) == {"tiny_a"}
    for features, lost in (("group", 0), ("own", 0.05)):
        part = frame[frame["features"] == features]
        assert part["share"].tolist() == [0.1, 0.2, 0.4]
        assert part["kept"].tolist() == pytest.approx([0.81 - lost, 0.86 - lost, 0.93 - lost])
    ranks = schema.read(finished[1], "ranks").pivot(
        index=["layer", "kv_head"], columns="features", values="correlation"
    )
    assert len(ranks) == synthetic.LAYERS * synthetic.KV_HEADS
    assert ranks["group"].between(0.5, 0.7).all() and ranks["own"].between(0.45, 0.65).all()


def test_aggregation_is_reproducible(finished, study):
    first = {file.name: file.read_bytes() for file in finished[1].iterdir()}
    assert {file.name: file.read_bytes() for file in run(study).iterdir()} == first


def test_budget_tokens():
    assert [budget_token(b) for b in ("20%", 256, None)] == ["20p", "256", "full"]


# --- what is compared with what, and corrected together


def test_an_experiment_sets_side_by_side(finished):
    """A pair that two experiments hold stands in both, with the same test."""
    frame = schema.read(finished[1], "comparisons")
    place = frame.query("task == 'niah_single' and length == 1000 and budget == '20p'")
    pair = place.query("method == 'head-aware' and reference == 'h2o' and metric == 'nll'")
    assert list(pair["experiment"]) == ["lengths", "budgets"]
    assert pair["p"].nunique() == 1
    assert set(frame.query("kind == 'ablation'")["experiment"]) == {"ablation"}


@pytest.mark.parametrize(
    "families, size",
    [
        (["experiment", "metric", "reference"], 3 * 2),
        (["experiment", "metric"], 3 * 2 * (3 + 2)),
        (["experiment", "metric", "reference", "length"], 2),
        (["metric", "experiment", "reference", "model", "task"], 3),
    ],
)
def test_p_is_corrected_within_the_families_of_the_config(tmp_path, families, size):
    """NLL of three lengths and two tasks; of full: three methods, of each baseline: ours."""
    settings = synthetic.config(families=families)
    settings["experiments"] = settings["experiments"][:1]
    frame = schema.read(run(synthetic.make(tmp_path, settings)), "comparisons")
    ours = frame.query("metric == 'nll' and kind == 'baseline'")
    assert set(ours["family"]) == {size}
    for _, family in frame.groupby(families):
        assert set(family["family"]) == {len(family)}
        assert family["p_holm"].to_numpy() == pytest.approx(holm(family["p"].to_numpy()))


def test_pooled_comparisons_are_corrected_over_all_references(finished):
    frame = schema.read(finished[1], "pooled")
    for _, family in frame.groupby(["experiment", "metric", "kind"]):
        assert set(family["family"]) == {len(family)}
        assert family["p_holm"].to_numpy() == pytest.approx(holm(family["p"].to_numpy()))
    assert frame.query("kind == 'baseline'").groupby("family")["reference"].nunique().min() > 1


def test_a_verdict_follows_from_the_corrected_p(finished):
    for table in ("comparisons", "pooled"):
        frame = schema.read(finished[1], table)
        assert ((frame["verdict"] != "unclear") == (frame["p_holm"] < 0.05)).all()
        assert set(frame["verdict"]) >= {"better", "worse", "unclear"}
        up = (frame["difference"] > 0) == (frame["metric"] != "nll")
        clear = frame["verdict"] != "unclear"
        assert ((frame["verdict"] == "better") == up)[clear].all()


# --- chance


@pytest.fixture
def choosing(tmp_path):
    """A study that asks for one of four needles."""
    settings = synthetic.config()
    settings["tasks"] = {"needles": {"kind": "niah", "needles": 4}}
    place = {"tasks": ["needles"], "lengths": [500], "methods": ["full", "h2o", "head-aware"]}
    settings["experiments"] = [settings["experiments"][0] | place]
    return synthetic.make(tmp_path, settings)


def answer(study, method, **values):
    """Give all samples of a method the same values, one a question where there are several."""
    for cell in load_study(study).cells:
        if cell.method == method:

            def change(record):
                for number, sample in enumerate(record["samples"]):
                    sample.update({k: v[number % len(v)] for k, v in values.items()})

            edit(study, cell, change)


def metrics_of(out, method):
    frame = schema.read(out, "cells")
    return frame[frame["method"] == method].set_index("metric")


def test_needles_are_counted_beside_the_score(choosing):
    answer(choosing, "h2o", score=[1.0, 0.0], any=[True, True], choice=[1.0, 1.0])
    answer(choosing, "head-aware", score=[1.0, 0.0], any=[True, False], choice=[0.0, 1.0])
    out = run(choosing)
    values = metrics_of(out, "h2o")["value"]
    assert values[["any", "given_any", "choice", "chance"]].tolist() == [1, 0.5, 1, 0.25]
    values = metrics_of(out, "head-aware")["value"]
    assert values[["any", "given_any", "choice", "chance"]].tolist() == [0.5, 1, 0.5, 0.25]
    pairs = schema.read(out, "comparisons").query("kind == 'baseline'").set_index("metric")
    assert pairs.loc["choice", ["difference", "verdict"]].tolist() == [-0.5, "worse"]
    assert not {"any", "given_any"} & set(pairs.index)


def test_contexts_whose_answers_are_no_needle_have_none_that_is_right(choosing):
    def none_but_first(record):
        for sample in record["samples"]:
            sample.update(any=sample["context_id"].endswith("/0"), score=1.0)

    edit(choosing, next(c for c in load_study(choosing).cells if c.method == "h2o"), none_but_first)
    row = metrics_of(run(choosing), "h2o").loc["given_any"]
    assert row["value"] == 1 and row["n_contexts"] == 1 and math.isnan(row["ci_low"])


@pytest.mark.parametrize(
    "scores, headline",
    [([1.0, 0.5], True), ([0.75, 0.5], True), ([0.5, 0.5], False), ([0.7, 0.5], False)],
)
def test_chance_is_taken_off_before_a_place_is_headline(choosing, scores, headline):
    """Of four needles a score of .625 is half of what guessing leaves to be known."""
    answer(choosing, "full", score=scores)
    out = run(choosing)
    for table in ("cells", "comparisons"):
        assert set(schema.read(out, table)["headline"]) == {headline}
    assert schema.read(out, "pooled").empty != headline


def test_a_single_needle_has_no_chance_level(finished, study):
    answer(study, "full", score=[0.5], choices=[1], choice=[1.0], any=[True])
    frame = schema.read(run(study), "cells").query("task == 'niah_single'")
    assert not {"choice", "chance"} & set(frame["metric"])
    assert frame["headline"].all()


# --- bits, tokens and times


def test_bits_and_kept_tokens_stand_beside_bytes(tmp_path):
    settings = synthetic.config()
    four = {"policy": "h2o", "bits": 4}
    settings["methods"] = settings["methods"] | {"four": four, "mixed": four | {"value_bits": 2}}
    place = {"lengths": [500], "methods": ["full", "h2o", "four", "mixed", "head-aware"]}
    settings["experiments"] = [settings["experiments"][0] | place | {"budgets": ["20%", "40%"]}]
    out = run(synthetic.make(tmp_path, settings))
    frame = schema.read(out, "cells").query("metric == 'kept' and task == 'niah_single'")
    frame = frame.set_index(["method", "budget"])
    bits = frame.groupby("method")["bits"].first()
    assert dict(bits) == {
        "full": "16", "h2o": "16", "head-aware": "16", "four": "4", "mixed": "4/2"
    }  # fmt: skip
    assert frame.loc[("h2o", "20p"), "value"] == pytest.approx(0.2, abs=0.01)
    assert frame.loc[("head-aware", "20p"), "value"] == pytest.approx(0.2, abs=0.01)
    assert frame.loc[("four", "20p"), "value"] == pytest.approx(0.8, abs=0.01)
    assert frame.loc[("four", "40p"), ["value", "all_kept"]].tolist() == [1.0, True]
    assert not frame.loc[("four", "20p"), "all_kept"]
    assert frame.loc[("full", "full"), ["value", "all_kept"]].tolist() == [1.0, False]
    pairs = schema.read(out, "comparisons")
    assert set(pairs.query("reference == 'four'")["reference_bits"]) == {"4"}
    assert set(pairs.query("method == 'four' and budget == '40p'")["all_kept"]) == {True}
    assert set(pairs.query("method == 'four' and budget == '20p'")["all_kept"]) == {False}


def test_one_head_that_loses_a_token_is_not_all_kept(study):
    cell = a_cell(study)

    def almost(record):
        whole = cell.length
        record["allocation"]["slots"] = [[whole] * 2 for _ in record["allocation"]["slots"]]
        record["allocation"]["slots"][3][1] = whole - 1 / 12

    edit(study, cell, lambda r: (almost(r), r["memory"].update(cache_bytes_allocated=0)))
    (kept,) = (
        schema.read(run(study), "cells")
        .query(f"method == 'h2o' and length == {cell.length} and task == 'niah_single'")
        .query(f"metric == 'kept' and budget == '{cell.budget}'")
        .to_dict("records")
    )
    assert 0.999 < kept["value"] < 1 and not kept["all_kept"]


@pytest.mark.parametrize(
    "place, named",
    [
        ({}, "cpu, Some CPU, 2 threads"),
        ({"cpu": "a node"}, "cpu, a node, 2 threads"),
        ({"device": "H100", "threads": 1}, "H100, Some CPU, 1 thread"),
    ],
)
def test_each_row_says_where_it_was_timed(study, place, named):
    edit(study, a_cell(study), lambda r: r["provenance"].update(place))
    cell = a_cell(study)
    frame = schema.read(run(study), "cells").query(
        f"task == 'niah_single' and length == {cell.length} and budget == '{cell.budget}'"
    )
    assert set(frame.query("method == 'h2o'")["machine"]) == {named}
    assert set(frame.query("method == 'head-aware'")["machine"]) == {"cpu, Some CPU, 2 threads"}


# --- seeds of calibrations


@pytest.fixture
def seeded(tmp_path):
    """Ours calibrated with three seeds, at one place."""
    settings = synthetic.config()
    ours = settings["methods"]["head-aware"] | {"calibration_seeds": [1, 2, 3]}
    settings["methods"] = settings["methods"] | {"head-aware": ours}
    place = {"tasks": ["niah_single"], "lengths": [500]}
    settings["experiments"] = [settings["experiments"][0] | place]
    return synthetic.make(tmp_path, settings)


def of_seed(study, seed):
    cells = load_study(study).cells
    return next(c for c in cells if c.spec.get("calibration") == {"seed": seed})


def test_seeds_of_a_calibration_are_one_method(seeded):
    cells = [c for c in load_study(seeded).cells if c.method == "head-aware"]
    assert len(cells) == 3 and len({c.key for c in cells}) == 1
    for seed, given in ((1, {"score": 0.0}), (2, {"score": 0.5}), (3, {"score": 1.0})):
        cell = of_seed(seeded, seed)
        edit(seeded, cell, lambda r, given=given: [s.update(given) for s in r["samples"]])
    answer(seeded, "h2o", score=[0.25])
    out = run(seeded)
    rows = schema.read(out, "cells")
    row = rows.query("method == 'head-aware' and metric == 'score'").iloc[0]
    assert row[["value", "seed_low", "seed_high", "seeds"]].tolist() == [0.5, 0.0, 1.0, 3]
    assert row["n_contexts"] == 12
    assert rows.query("method == 'h2o'")["seed_low"].isna().all()
    for table in ("comparisons", "pooled"):
        pairs = schema.read(out, table).query("reference == 'h2o' and metric == 'score'")
        (pair,) = pairs.to_dict("records")
        assert (pair["difference"], pair["seed_low"], pair["seed_high"]) == (0.25, -0.25, 0.75)
        assert pair["n_contexts"] == 12  # contexts are not counted once a seed


def test_times_of_seeds_on_two_machines_are_those_of_no_machine(seeded):
    edit(seeded, of_seed(seeded, 2), lambda r: r["provenance"].update(cpu="a node"))
    machines = schema.read(run(seeded), "cells").groupby("method")["machine"].unique()
    assert machines["head-aware"].tolist() == ["cpu, Some CPU, 2 threads; cpu, a node, 2 threads"]


def test_a_draft_may_lack_a_seed(seeded):
    record_file(seeded, of_seed(seeded, 2)).unlink()
    frame = schema.read(run(seeded, draft=True), "cells")
    assert set(frame.query("method == 'head-aware'")["seeds"]) == {2}


def test_budgets_of_heads_are_those_of_the_first_seed(seeded):
    frame = schema.read(run(seeded), "allocation")
    record = json.loads(record_file(seeded, of_seed(seeded, 1)).read_text())
    assert frame["slots"].to_numpy() == pytest.approx(np.ravel(record["allocation"]["slots"]))
