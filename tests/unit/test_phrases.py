"""Every sentence that says how something came out: printed where it is true, and only there.

A study is made once; its CSV files are then edited so that a sentence must be true or must not.
"""

import dataclasses
import re

import pandas as pd
import pytest
import rendering
import synthetic

from kvbudget.paper import check, findings, latex, numbers, registry, shown, source, tally
from kvbudget.paper.phrases import (
    ablation,
    claims,
    cost,
    heads,
    places,
    quality,
    rigour,
    setup,
    words,
)

PARTS = (claims, quality, places, ablation, rigour, cost, heads)
OURS = "head-aware"
#: What is not said where tasks are few, the full cache fails nowhere or calibrations have one seed.
QUIET = ("tasks", "breadth", "outside", "failing", "apart")


class Told(source.Source):
    """A source of which some CSV files are others."""

    frames: dict

    def table(self, name):
        return self.frames[name] if name in self.frames else super().table(name)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two budgets at which H2O is measured in sixteen and in four bits, and an ablation."""
    settings = synthetic.config()
    settings["methods"] = settings["methods"] | {
        "h2o-4bit": {"policy": "h2o", "title": "Quantised H2O", "bits": 4}
    }
    settings["tasks"]["needles"] = {"kind": "niah", "needles": 4, "title": "One of several"}
    lengths, budgets, parts = settings["experiments"]
    settings["experiments"] = [
        lengths | {"tasks": ["needles"], "lengths": [500], "title": "By length"},
        budgets
        | {
            "tasks": ["needles", "perplexity"],
            "methods": [*synthetic.MAIN, "h2o-4bit"],
            "budgets": ["10%", "40%"],
            "title": "By budget",
        },
        parts | {"tasks": ["needles"], "title": "Parts"},
    ]
    src, _ = rendering.build(tmp_path_factory.mktemp("phrases"), settings)
    return src


def with_frames(src, frames):
    """A study with other CSV files."""
    own = Told(src.study, src.directory, src.tables)
    object.__setattr__(own, "frames", frames)
    return own


def told(src, **frames):
    """What is said of a study with other CSV files, by key."""
    pairs = [pair for part in PARTS for pair in part.derived(with_frames(src, frames))]
    return {key: plain(text) for key, text in pairs if key.startswith(("summary/", "paper/"))}


def plain(tex):
    """LaTeX as it reads."""
    tex = re.sub(r"\\(?:emph|ensuremath|allowbreak)\{([^{}]*)\}", r"\1", tex)
    tex = re.sub(r"\\paragraph\{([^{}]*)\}", r" \1 ", tex)
    return re.sub(r"\s+", " ", tex.replace("\\%", "%")).strip()


def judged(frame, where="kind == 'baseline'", **columns):
    """The same comparisons with another outcome."""
    frame = frame.copy()
    rows = frame.query(where).index
    for name, value in columns.items():
        frame.loc[rows, name] = value
    clear = frame["verdict"] != "unclear"
    frame["p_holm"] = frame["p_holm"].where(~clear, 0.01).where(clear, 0.5)
    return frame


def outcome(verdict, metric="score"):
    """A difference of .2 with its interval and verdict, in favour of ours or of the other."""
    sign = {"better": 1, "unclear": 1, "worse": -1}[verdict] * (-1 if metric == "nll" else 1)
    low, high = sorted((0.1 * sign, 0.3 * sign))
    values = {"difference": 0.2 * sign, "ci_low": low, "ci_high": high, "verdict": verdict}
    return values | {"value": 0.5, "reference_value": 0.5 - 0.2 * sign}


def all_of(frame, verdict, where="kind == 'baseline'"):
    """All comparisons of ours with a baseline come out in one way."""
    for metric in words.METRIC_TITLE:
        frame = judged(frame, f"{where} and metric == '{metric}'", **outcome(verdict, metric))
    return frame


def everywhere(src, verdict):
    """Both tables of comparisons, all alike."""
    return {
        "pooled": all_of(src.table("pooled"), verdict),
        "comparisons": all_of(src.comparisons, verdict),
    }


# --- better and worse


def test_all_peers_are_beaten(study):
    said = told(study, **everywhere(study, "better"))
    assert said["summary/answer"] == (
        "At budgets of 10% and 40%, Head-Aware is clearly better than every peer in score."
    )
    assert "Head-Aware scores highest, 0.50" in said["summary/findings"]
    assert "is 0.20 (0.10 to 0.30) behind, which is clear." in said["summary/findings"]
    assert "In NLL Head-Aware is 0.20 (0.10 to 0.30) better than" in said["summary/findings"]
    assert "ahead" not in said["summary/findings"] and "worse" not in said["summary/findings"]
    assert said["summary/others"] == (
        "In By length, Head-Aware is, in score, 0.20 ahead of H2O at a budget of 20%, which is "
        "clear."
    )
    assert said["summary/losses"].startswith("In no comparison with a baseline")
    assert said["summary/bits"].count("and clearly worse in none of") == 6  # metrics, bits


def test_all_peers_beat_it(study):
    said = told(study, **everywhere(study, "worse"))
    assert said["summary/answer"] == (
        "At budgets of 10% and 40%, Head-Aware is clearly worse than every peer in score."
    )
    assert "scores highest, 0.70; Head-Aware comes to 0.50" in said["summary/findings"]
    assert "Head-Aware scores highest" not in said["summary/findings"]
    assert "is 0.20 (0.10 to 0.30) ahead, which is clear." in said["summary/findings"]
    assert "In NLL Head-Aware is 0.20 (0.10 to 0.30) worse than" in said["summary/findings"]
    assert "0.20 behind H2O at a budget of 20%, which is clear" in said["summary/others"]
    assert said["summary/losses"].startswith(
        "With Tiny-A, Head-Aware is clearly worse in score in 8 of 8 comparisons, most often than "
        "H2O and StreamingLLM, and by 0.20 at most, than H2O; in NLL in "
    )
    assert said["summary/bits"].count("clearly better in none and") == 6
    assert "better" not in said["summary/answer"]


@pytest.mark.parametrize(("but", "whom"), [(2, "every peer but B 0 and B 1"), (6, "6 of 12 peers")])
def test_many_peers_are_not_named_one_by_one(study, monkeypatch, but, whom):
    monkeypatch.setattr(quality, "title", lambda src, method: latex.Latex(method))
    peers = [{"reference": f"B {n}", "verdict": "unclear"} for n in range(but)]
    peers += [{"reference": f"A {n}", "verdict": "better"} for n in range(12 - but)]
    (found, *_) = findings.of_experiment(study, findings.main_experiment(study))
    many = dataclasses.replace(found, peers=peers)
    assert quality._outcome(study, many) == f"clearly better than {whom}"


def test_nothing_is_clear(study):
    said = told(study, **everywhere(study, "unclear"))
    assert said["summary/answer"] == (
        "At budgets of 10% and 40%, Head-Aware is not clearly better or worse than any peer in "
        "score."
    )
    assert "which is not clear" in said["summary/findings"]
    assert "which is clear" not in said["summary/findings"] + said["summary/others"]
    assert "clearly" not in said["summary/bits"]
    assert said["summary/bits"].count("no difference is clear among") == 6  # metrics, bits
    assert said["summary/losses"].startswith("In no comparison with a baseline")


def test_one_loss_is_named_with_its_place_and_size(study):
    frames = everywhere(study, "better")
    where = "experiment == 'budgets' and task == 'needles' and reference == 'h2o-4bit'"
    where += " and budget == '10p' and metric == 'score' and kind == 'baseline'"
    frames["comparisons"] = judged(frames["comparisons"], where, **outcome("worse"))
    said = told(study, **frames)
    assert said["summary/losses"] == (
        "With Tiny-A, Head-Aware is clearly worse in score in 1 of 8 comparisons, than Quantised "
        "H2O, by 0.20."
    )
    assert (
        "Against peers in four bits, Head-Aware is clearly better in 1 and clearly worse in 1"
        in (said["summary/bits"])
    )
    assert (
        "Against peers in sixteen bits, Head-Aware is clearly better in 6 and clearly worse in none"
        in (said["summary/bits"])
    )


def test_a_peer_that_beats_it_at_one_budget_is_named(study):
    frames = everywhere(study, "better")
    where = "experiment == 'budgets' and reference == 'h2o' and budget == '40p'"
    where += " and metric == 'score' and kind == 'baseline'"
    frames["pooled"] = judged(frames["pooled"], where, **outcome("worse"))
    said = told(study, **frames)
    assert said["summary/answer"] == (
        "At a budget of 10%, Head-Aware is clearly better than every peer in score. "
        "At a budget of 40%, Head-Aware is clearly better than StreamingLLM and Quantised H2O and "
        "clearly worse than H2O in score."
    )
    assert "H2O scores highest, 0.70; Head-Aware comes to 0.50" in said["summary/findings"]
    assert (
        "The best peer in sixteen bits, H2O, is 0.20 (0.10 to 0.30) ahead"
        in (said["summary/findings"])
    )
    assert (
        "The best peer in four bits, Quantised H2O, is 0.20 (0.10 to 0.30) behind"
        in (said["summary/findings"])
    )


def test_level_at_the_top(study):
    level = {"difference": 0.0, "ci_low": -0.1, "ci_high": 0.1, "verdict": "unclear"}
    level |= {"value": 0.5, "reference_value": 0.5}
    said = told(study, pooled=judged(study.table("pooled"), **level))["summary/findings"]
    assert "are level at the top with 0.50" in said
    assert "highest" not in said and "behind" not in said and "ahead" not in said
    assert "is 0.00 (-0.10 to 0.10) apart, which is not clear" in said


def test_no_interval_no_brackets(study):
    frames = everywhere(study, "better")
    frames["pooled"] = judged(frames["pooled"], ci_low=float("nan"), ci_high=float("nan"))
    assert "is 0.20 behind, which is clear." in told(study, **frames)["summary/findings"]


def test_a_budget_that_evicts_nothing_is_not_called_by_its_share(study):
    frames = everywhere(study, "better")
    for name in frames:
        frames[name] = judged(frames[name], "budget == '40p'", all_kept=True)
    said = told(study, **frames)
    for key in ("answer", "findings", "losses"):
        assert "40%" not in said[f"summary/{key}"]
    assert "clearly better in 4 and clearly worse in none of 4" in said["summary/bits"]
    assert "Where Head-Aware evicts nothing (all kept)" in said["summary/findings"]


@pytest.mark.parametrize("kind", ["baseline", "ablation"])
def test_what_is_not_compared_is_not_claimed(study, kind):
    frames = {name: study.table(name) for name in ("pooled", "comparisons")}
    said = told(study, **{name: f[f["kind"] != kind] for name, f in frames.items()})
    if kind == "ablation":
        assert "holds no headline comparison of a variant" in said["summary/ablation"]
        return
    for key in ("answer", "power"):
        assert said[f"summary/{key}"] == words.NO_OURS
    assert said["summary/losses"] == "Nowhere is Head-Aware set beside a baseline and evicts."
    assert said["summary/findings"] == ""
    assert (
        said["summary/bits"]
        == "No comparison with a baseline, where Head-Aware evicts, counts as headline."
    )


@pytest.mark.parametrize(("verdict", "clear"), [("better", 1), ("worse", 3)])
def test_a_pair_of_two_experiments_counts_once(study, verdict, clear):
    """A win as the strictest family judges it, a loss as the mildest."""
    frames = everywhere(study, verdict)
    once = told(study, **frames)
    again = frames["comparisons"].query("experiment == 'budgets'").assign(experiment="again")
    stricter = judged(again, verdict="unclear")
    frames["comparisons"] = pd.concat([frames["comparisons"], stricter], ignore_index=True)
    tallied = tally.tallies(tally.against_peers(with_frames(study, frames)))
    (found,) = (t for t in tallied if (t.metric, t.reference) == ("score", "h2o"))
    assert (found.places, getattr(found, verdict)) == (3, clear)
    said = told(study, **frames)
    assert said["summary/losses"] == once["summary/losses"]
    assert (said["summary/bits"] == once["summary/bits"]) == (verdict == "worse")


def test_the_largest_loss_is_to_whom_it_is(study):
    frames = everywhere(study, "better")
    where = "metric == 'score' and kind == 'baseline' and reference == "
    often = judged(frames["comparisons"], where + "'h2o'", **outcome("worse"))
    larger = outcome("worse") | {"difference": -0.4}
    most = judged(
        often, where + "'streaming-llm' and task == 'needles' and budget == '10p'", **larger
    )
    assert told(study, **frames | {"comparisons": most})["summary/losses"] == (
        "With Tiny-A, Head-Aware is clearly worse in score in 4 of 8 comparisons, most often than "
        "H2O, and by 0.40 at most, than StreamingLLM."
    )


# --- the ablation


def test_variants_are_named_by_what_they_do(study):
    where = "kind == 'ablation' and method == 'uniform' and metric == 'score'"
    frame = all_of(study.table("pooled"), "unclear", "kind == 'ablation'")
    assert "clearly" not in told(study, pooled=frame)["summary/ablation"]
    for verdict, other in (("worse", "better"), ("better", "worse")):
        said = told(study, pooled=judged(frame, where, **outcome(verdict)))["summary/ablation"]
        assert f"uniform budgets is clearly {verdict} in score, by 0.20 (0.10 to 0.30)." in said
        assert other not in said
        assert "In score no clear difference shows for without groups." in said


def test_variants_at_many_places_are_counted(study):
    frame = all_of(study.table("pooled").query("kind == 'ablation'"), "unclear", "metric != ''")
    frame = judged(frame, "method == 'uniform'", **outcome("worse"))
    said = told(study, pooled=pd.concat([frame.assign(model=f"m{i}") for i in range(3)]))
    assert said["summary/ablation"] == (
        "uniform budgets is clearly worse in 3 of 3 comparisons in score. "
        "In score no clear difference shows for without groups."
    )


def test_variants_of_other_experiments_stand_apart(study):
    frame = all_of(study.table("pooled").query("kind == 'ablation'"), "unclear", "metric != ''")
    other = frame.replace({"method": {"uniform": "head-aware"}}).assign(experiment="lengths")
    other = judged(other, "metric == 'score'", **outcome("worse"))
    said = told(study, pooled=pd.concat([frame, other], ignore_index=True))
    parts, apart = said["summary/ablation"].split(" By length. ")
    assert parts.count("without groups") == 3  # metrics
    worse = "Head-Aware + groups is clearly worse in score (Tiny-A, 20%), by 0.20 (0.10 to 0.30)."
    assert apart == worse


def test_variants_of_another_device_say_so(study):
    frame = all_of(study.table("pooled").query("kind == 'ablation'"), "unclear", "metric != ''")
    other = frame.replace({"method": {"uniform": "h2o"}}).assign(experiment="lengths")
    cells = study.cells.copy()
    cells.loc[cells["method"] == "h2o", "machine"] = "NVIDIA H200, Some CPU"
    pooled = pd.concat([frame, other], ignore_index=True)
    said = "Head-Aware itself was measured on another device than these, which shifts them."
    assert told(study, cells=cells, pooled=pooled)["summary/ablation"].endswith(said)
    assert said not in told(study, pooled=pooled)["summary/ablation"]


# --- power, headline, families, seeds


def test_power_says_what_can_be_shown(study):
    said = told(study)["summary/power"]
    assert "rests on 12 contexts. Four times out of five it would show a true difference" in said
    assert "too few" not in said and "no comparison" not in said


def test_power_says_where_contexts_are_too_few(study):
    frame = study.comparisons.assign(n_contexts=5)
    frames = {"comparisons": all_of(frame, "unclear")}
    said = told(study, **frames)
    assert "With at most 5 contexts" in said["summary/power"]
    assert "no comparison of this study can be clear" in said["summary/power"]
    assert said["summary/losses"] == "With so few contexts no comparison could have shown a loss."
    some = frame.assign(n_contexts=frame["task"].map({"needles": 5, "perplexity": 12}))
    said = told(study, comparisons=some)["summary/power"]
    few = some.loc[some["kind"] == "baseline", "n_contexts"] == 5
    assert f"In {few.sum()} of {len(few)} comparisons" in said


def test_places_that_fail_are_named(study):
    assert "none fails" in told(study)["summary/headline"]
    cells = study.cells.copy()
    cells.loc[(cells["task"] == "needles") & (cells["length"] == 500), "headline"] = False
    said = told(study, cells=cells)
    assert "the full cache fails in 1 of 2 combinations" in said["summary/headline"]
    assert "none fails" not in said["summary/headline"]
    assert said["summary/failing"] == (
        "Places that count for no headline, as the full cache fails there: Tiny-A on One of "
        "several at 500 tokens."
    )


def test_a_task_that_fails_at_some_lengths_is_named_with_them(study):
    one = study.cells[(study.cells["task"] == "needles") & (study.cells["length"] == 500)]
    cells = pd.concat([one.assign(length=n, headline=n == 500) for n in (500, 1500, 2500)])
    said = told(study, cells=cells)["summary/failing"]
    assert "Tiny-A on One of several at 1,500 and 2,500 tokens" in said


def test_families_are_those_of_the_config(study):
    assert told(study)["summary/families"] == (
        "Comparisons that agree in experiment, metric and reference are one family; where places "
        "are taken together, all references of a kind are in one."
    )


def test_seeds_say_how_far_they_lie_apart(study):
    assert "has one seed" in told(study)["summary/seeds"]
    cells = study.cells.copy()
    mine = (cells["method"] == OURS) & (cells["metric"] == "score")
    cells.loc[mine, "seeds"] = 3
    cells.loc[mine, "seed_low"], cells.loc[mine, "seed_high"] = 0.4, 0.5
    said = told(study, cells=cells)["summary/seeds"]
    assert "The score of Head-Aware + groups, a mean over 3 calibrations" in said
    assert "differs between them by 0.10 at most" in said and "one seed" not in said


# --- the scorer


def test_the_fit_is_told_of_each_model(study):
    assert told(study)["summary/fit"] == (
        "In this study the map is fitted on 6 contexts of 1,000 to 2,000 tokens."
    )
    said = told(study)["summary/ranks"]
    ranks = study.table("ranks")
    group, own = (
        ranks.loc[ranks["features"] == features, "correlation"].mean()
        for features in ("group", "own")
    )
    assert said == (
        "With Tiny-A, the 10% of tokens that the map ranks first hold 81% of the scores that "
        "the truly best hold; of 20% they hold 86%; of 40% they hold 93%. Over the tokens of a "
        f"head the map's ranks correlate with the true ones by {group:.2f}, those of a map of the "
        f"head's own key and value by {own:.2f}."
    )
    frame = study.table("scorer")
    both = pd.concat([frame, frame.assign(model="other", kept=0.5)])
    others = pd.concat([ranks, ranks.assign(model="other", correlation=0.25)])
    said = told(study, scorer=both, ranks=others)["summary/ranks"]
    assert "With other, the 10% of tokens that the map ranks first hold 50% of the scores" in said
    assert "true ones by 0.25, those of a map of the head's own key and value by 0.25." in said
    hidden = ranks[ranks["features"] == "group"].assign(features="hidden", correlation=0.75)
    said = told(study, ranks=pd.concat([ranks, hidden]))["summary/ranks"]
    assert said.endswith(f"by {own:.2f}, and those of a map of the hidden state by 0.75.")
    assert told(study, scorer=frame[:0])["summary/fit"] == "This study holds no calibration."


# --- needles, tokens, times


def test_needles_are_told_only_where_one_of_several_is_asked_for(study):
    said = told(study)["summary/choice"]
    assert said.index("At a budget of 10%") < said.index("At a budget of 40%")
    assert "chance is 25%" in said and "are the right one" in said
    without = study.cells[study.cells["task"] == "perplexity"]
    said = told(study, cells=without)["summary/choice"]
    assert said == "No headline task of this study asks for one of several needles."


def test_tokens_stand_beside_bytes(study):
    said = told(study)["summary/tokens"]
    assert said == (
        "In four bits, budgets hold these shares of a context's tokens: 40% at 10%. A budget at "
        "which nothing is evicted is called all kept."
    )
    sixteen = study.cells[study.cells["bits"] == "16"]
    said = told(study, cells=sixteen)["summary/tokens"]
    assert said == "All methods of this study store numbers of sixteen bits."


def test_what_stands_on_top_of_a_budget_is_told_where_something_does(study):
    said = told(study)["summary/memory"]
    assert (
        "stands on top of the context's budget: 45 tokens. That is at most 9% of the full" in said
    )
    assert "cache's bytes, and at most 45% of a budget's." in said
    rest = study.cells[~study.cells["metric"].str.endswith("_on_top")]
    assert "on top" not in told(study, cells=rest)["summary/memory"]


def test_times_of_two_machines_stand_in_no_ratio(study):
    assert "times the full cache's speed" in told(study)["summary/speed"]
    cells = study.cells.copy()
    cells.loc[cells["policy"] == "full", "machine"] = "another"
    said = told(study, cells=cells)["summary/speed"]
    assert "were not timed on one machine" in said and "speed" not in said


def test_times_name_the_machine_that_they_come_from(study):
    (machine,) = study.cells["machine"].unique()
    assert told(study)["summary/speed"].endswith(f"Times come from {machine}.")


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ("cpu", "Xeon and EPYC"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA H200; cpu", "NVIDIA H200, Xeon and EPYC"),
    ],
)
def test_machines_are_gpus_and_the_processors_of_the_others(study, devices, said):
    frame = pd.DataFrame({"item": ["device", "cpu"], "value": [devices, "Xeon; EPYC"]})
    own = Told(study.study, study.directory, study.tables)
    object.__setattr__(own, "frames", {"provenance": frame})
    assert plain(dict(setup.derived(own))["machine/description"]) == said


# --- as a whole


@pytest.mark.parametrize("verdict", ["better", "worse", "unclear"])
def test_no_sentence_has_more_than_three_numbers(study, verdict):
    frames = everywhere(study, verdict)
    frames["pooled"] = all_of(frames["pooled"], verdict, "kind == 'ablation'")
    titles = [study.study.title("methods", method) for method in study.study.methods]
    for key, text in told(study, **frames).items():
        for title in titles:
            text = text.replace(title, "X")
        for sentence in re.split(r"(?<=[.;]) ", text):
            assert len(check.NUMBER.findall(sentence)) <= 3, (key, sentence)


def test_each_sentence_has_its_key_once_and_ends(study):
    for key, text in told(study).items():
        if key not in ("summary/main", "paper/title"):
            few = key.split("/")[1] in QUIET and not text
            assert few or text.endswith("."), (key, text)
            assert "nan" not in text and "None" not in text and "  " not in text, (key, text)


def test_a_sentence_reads_only_what_is_declared(study):
    own = dataclasses.replace(study, tables=registry.NUMBERS.csv)
    assert "summary/findings" in numbers.text(own)


def of_two_models(src):
    """The same study with a second model, of which nothing is measured."""
    cells = src.study.cells
    again = [dataclasses.replace(c, spec=c.spec | {"model": "other"}) for c in cells]
    return dataclasses.replace(src, study=dataclasses.replace(src.study, cells=(*cells, *again)))


def test_a_study_of_several_models_names_them(study):
    pooled = all_of(study.table("pooled"), "better")
    other = pooled.assign(model="other")
    said = told(of_two_models(study), pooled=pd.concat([pooled, other]))
    assert "With Tiny-A at budgets of 10% and 40%, Head-Aware" in said["summary/answer"]
    assert "With other at budgets of 10% and 40%, Head-Aware" in said["summary/answer"]
    assert "With Tiny-A at a budget of 10%. " in said["summary/findings"]
    # One budget of each is told, the others are counted.
    assert "at a budget of 40%" not in said["summary/findings"]


def test_of_many_outcomes_the_appendix_tells(study):
    pooled = all_of(study.table("pooled"), "better")
    frames = [pooled.assign(model=f"m{i}") for i in range(5)]
    said = told(study, pooled=pd.concat(frames))["summary/answer"]
    assert "verdicts, budget by budget" in said


def test_many_findings_of_an_experiment_are_counted(study):
    pooled = all_of(study.table("pooled"), "better")
    more = [pooled.assign(model=f"m{i}") for i in range(4)]
    said = told(study, pooled=pd.concat([pooled, *more]))["summary/others"]
    assert "clearly better than its best peer in score in 5 of 5 pairs of model and budget" in said


def test_the_main_experiment_has_most_peers_and_then_most_places(study):
    pooled = study.table("pooled")
    again = pooled.query("experiment == 'budgets'").assign(experiment="again")

    def main(frame):
        own = Told(study.study, study.directory, study.tables)
        object.__setattr__(own, "frames", {"pooled": frame})
        return findings.main_experiment(own)

    assert main(pooled) == main(pd.concat([pooled, again])) == "budgets"
    assert main(pd.concat([pooled, again.assign(places=again["places"] + 1)])) == "again"
    fewer = again[again["reference"] != "h2o-4bit"].assign(places=100)
    assert main(pd.concat([pooled, fewer])) == "budgets"
    assert main(pooled[:0]) is None


# --- what may be claimed


def test_the_title_follows_from_the_verdicts(study):
    """Peers of one reading beaten everywhere; KVzip nowhere better by more than the margin."""
    beaten = everywhere(study, "better")["pooled"]
    assert told(study, pooled=beaten)["paper/title"] == "More From One Reading"
    twice = beaten.query("kind == 'baseline' and reference == 'h2o'").assign(reference="twice")
    config = study.study.config
    kvzip = {name: {"policy": "kvzip", "title": name.title()} for name in ("twice", "again")}
    methods = config["methods"] | kvzip
    own = dataclasses.replace(
        study, study=dataclasses.replace(study.study, config=config | {"methods": methods})
    )

    def titled(**columns):
        row = all_of(twice, "unclear").assign(**columns)
        return told(own, pooled=pd.concat([beaten, row], ignore_index=True))

    near, far = titled(ci_low=-0.04), titled(ci_low=-0.06)
    assert near["paper/title"] == "One Reading for Two"
    assert (
        "Against Twice, which reads twice, Head-Aware is clearly better in score in none of 2 comp"
        in (near["summary/claim"])
    )
    assert "A loss of more than 0.05 is excluded in 2 of them" in near["summary/claim"]
    two = told(own, pooled=pd.concat([beaten, twice, twice.assign(reference="again")]))
    assert "Against Twice and Again, which read twice, Head-Aware is" in two["summary/claim"]
    assert far["paper/title"] == "More From One Reading"
    assert "is excluded in none of them" in far["summary/claim"]
    assert titled(ci_low=float("nan"))["paper/title"] == "More From One Reading"
    lost = judged(beaten, "kind == 'baseline' and reference == 'h2o'", verdict="unclear")
    assert told(study, pooled=lost)["paper/title"] == "What Heads Keep"
    assert told(study, pooled=beaten[beaten["kind"] != "baseline"])["paper/title"] == (
        "What Heads Keep"
    )


def test_the_claim_counts_wins_and_losses(study):
    said = told(study, **everywhere(study, "worse"))["summary/claim"]
    assert said == (
        "Against peers that read once in sixteen bits, Head-Aware is clearly better in score in "
        "none of 4 comparisons and clearly worse in 4; against those in four bits in none of 2 and "
        "in 2."
    )


def test_a_claim_of_few_peers_names_them(study):
    frames = everywhere(study, "better")
    for name in frames:
        frames[name] = frames[name][frames[name]["budget"] != "40p"]
    where = "kind == 'baseline' and reference == 'h2o'"
    frames["pooled"] = judged(frames["pooled"], where, verdict="unclear")
    assert told(study, **frames)["summary/claim"] == (
        "Against peers that read once in sixteen bits, Head-Aware is in score clearly better than "
        "StreamingLLM, not clearly apart from H2O; against those in four bits clearly better than "
        "Quantised H2O."
    )


def test_the_full_cache_is_told_of_as_peers_are(study):
    rows = all_of(study.table("pooled"), "worse", "kind == 'full'")
    assert told(study, pooled=rows)["summary/full"] == (
        "The full cache is clearly better in score in 2 of 2 comparisons."
    )
    alone = rows[(rows["kind"] != "full") | (rows["budget"] == "10p")]
    assert told(study, pooled=alone)["summary/full"] == (
        "The full cache is better in score by 0.20 (0.10 to 0.30), which is clear."
    )
    assert told(study, pooled=rows[rows["kind"] != "full"])["summary/full"] == ""


def test_a_loss_that_shows_over_places_together_is_told(study):
    frames = everywhere(study, "unclear")
    where = "experiment == 'budgets' and reference == 'h2o' and budget == '10p' and metric == 'nll'"
    frames["pooled"] = judged(frames["pooled"], where, **outcome("worse", "nll"))
    assert told(study, **frames)["summary/losses"] == (
        "In no comparison with a baseline, headline or not, is Head-Aware clearly worse. Over "
        "headline places of an experiment together, it is clearly worse than H2O in NLL at a "
        "budget of 10%, by 0.20."
    )


def test_the_claim_names_its_models_where_others_count_for_no_headline(study):
    said = told(of_two_models(study), **everywhere(study, "better"))
    assert said["summary/claim"].startswith("With Tiny-A, against peers that read once in sixteen")
    assert "With Tiny-A at budgets of 10% and 40%, Head-Aware is" in said["summary/answer"]
    assert said["summary/outside"] == ""


def test_what_ours_scores_where_the_full_cache_fails(study):
    cells = study.cells.copy()
    weak = (cells["task"] == "needles") & (cells["length"] == 1000)
    cells.loc[weak, "headline"] = False
    scored = weak & (cells["metric"] == "score")
    cells.loc[scored & (cells["policy"] == "full"), "value"] = 0.4
    cells.loc[scored & (cells["method"] == OURS), "value"] = 0.3
    assert told(study, cells=cells)["summary/outside"] == (
        "Where the full cache itself fails, at places that count for no headline, on One of "
        "several at a budget of 20%, Head-Aware scores 0.30 with Tiny-A in the mean (full cache: "
        "0.40)."
    )
    # Without a full cache nothing says that it fails.
    none = cells[cells["policy"] != "full"]
    assert told(study, cells=none)["summary/outside"] == ""


def test_where_nothing_is_evicted_nothing_is_counted(study):
    frames = {
        name: frame.assign(all_kept=True) for name, frame in everywhere(study, "better").items()
    }
    said = told(study, **frames)
    assert said["summary/bits"].startswith("No comparison with a baseline, where Head-Aware evicts")
    assert said["summary/losses"].startswith("Nowhere is Head-Aware set beside")
    assert said["summary/claim"] == "Head-Aware evicts nothing at the budgets of this study."
    assert said["summary/others"].endswith("sets Head-Aware beside a peer where it evicts.")


def test_the_only_peer_of_two_readings_is_told_with_its_interval(study):
    beaten = everywhere(study, "better")["pooled"]
    once = beaten.query("budget == '10p'")
    config = study.study.config
    methods = config["methods"] | {"twice": {"policy": "kvzip", "title": "Twice"}}
    own = dataclasses.replace(
        study, study=dataclasses.replace(study.study, config=config | {"methods": methods})
    )
    for verdict, said in (
        ("better", "better in score by 0.20 (0.10 to 0.30), which is clear."),
        ("worse", "worse in score by 0.20 (0.10 to 0.30), which is clear. A loss of more than"),
    ):
        row = once.query("kind == 'baseline' and reference == 'h2o'").assign(reference="twice")
        pooled = pd.concat([once, all_of(row, verdict)])
        assert (
            f"Against Twice, which reads twice, Head-Aware is {said}"
            in told(own, pooled=pooled)["summary/claim"]
        )


def test_means_over_tasks_stand_beside_the_full_cache(study, monkeypatch):
    assert told(study)["summary/breadth"] == ""
    monkeypatch.setattr(shown, "LEAST_TASKS", 1)
    chosen = shown.tasks(study)
    cells = study.cells.query(f"metric == 'score' and length == {chosen.length}")
    values = cells[cells["budget"].isin([chosen.budget, "full"])].set_index("method")["value"]
    best = values[["h2o", "streaming-llm"]].idxmax()
    assert told(study)["summary/breadth"] == (
        f"Over the headline tasks at {chosen.length:,} tokens and at a budget of "
        f"{chosen.budget[:-1]}%, Tiny-A scores {values[OURS]:.2f} in the mean with Head-Aware; "
        f"{values['full']:.2f} with the full cache; {values[best]:.2f} with the best peer, "
        f"{study.study.title('methods', best)}."
    )


def test_tasks_are_those_of_models_with_enough_of_them(study):
    assert shown.tasks(study) is None
    score = study.cells[(study.cells["metric"] == "score") & (study.cells["budget"] != "full")]
    short = score[score["length"] == 500]
    cells = [short, short.assign(task="other"), *(score.assign(model=f"m{n}") for n in range(3))]
    planned = [
        dataclasses.replace(c, spec=c.spec | {"task": c.spec["task"] | {"name": "other"}})
        for c in study.study.cells
    ]
    own = dataclasses.replace(
        study, study=dataclasses.replace(study.study, cells=(*study.study.cells, *planned))
    )
    source_ = Told(own.study, own.directory, own.tables)
    object.__setattr__(source_, "frames", {"cells": pd.concat(cells)})
    chosen = shown.tasks(source_)
    assert (chosen.length, chosen.models, chosen.tasks) == (500, ["tiny_a"], ["needles", "other"])


def test_a_row_is_of_a_method_that_is_measured_at_half_of_the_places(study):
    short = study.cells[(study.cells["length"] == 500) & (study.cells["task"] == "needles")]
    cells = pd.concat(short.assign(length=length) for length in (500, 1500, 2500))
    cells = cells[(cells["method"] != "h2o") | (cells["length"] == 500)]
    own = Told(study.study, study.directory, study.tables)
    object.__setattr__(own, "frames", {"cells": cells})
    places = [("tiny_a", "needles", length) for length in (500, 1500, 2500, 3500)]
    assert shown.methods(own, places, "20p") == ["full", "streaming-llm", OURS]
    assert shown.methods(own, places[:2], "20p") == synthetic.MAIN
    # Of a draft, all that there is.
    cells = [
        cells[(cells["length"] == n) & (cells["method"] == m)]
        for n, m in ((500, "h2o"), (1500, "full"), (2500, OURS))
    ]
    own = Told(study.study, study.directory, study.tables)
    object.__setattr__(own, "frames", {"cells": pd.concat(cells)})
    assert shown.methods(own, places, "20p") == ["full", "h2o", OURS]


def test_a_pair_of_two_devices_is_counted(study):
    own = Told(study.study, study.directory, study.tables)
    object.__setattr__(own, "frames", {})
    assert dict(setup.derived(own))["machine/pairs"] == ""
    cells = study.cells.copy()
    cells.loc[cells["method"] == "h2o", "machine"] = "NVIDIA H200, Some CPU"
    object.__setattr__(own, "frames", {"cells": cells})
    del own.__dict__["cells"]
    said = plain(dict(setup.derived(own))["machine/pairs"])
    pairs = study.comparisons.query("kind == 'baseline' and headline")
    pairs = pairs.drop_duplicates(["task", "length", "budget", "reference"])
    ours = (pairs["reference"] == "h2o").sum()
    assert said.startswith(f"In {ours} of {len(pairs)} headline pairs of Head-Aware and a peer")


def test_tasks_are_counted_peer_by_peer(study, monkeypatch):
    assert told(study)["summary/tasks"] == ""
    monkeypatch.setattr(shown, "LEAST_TASKS", 1)
    frames = everywhere(study, "better")
    where = "reference == 'h2o' and metric == 'score' and kind == 'baseline'"
    frames["comparisons"] = judged(frames["comparisons"], where, **outcome("worse"))
    assert told(study, **frames)["summary/tasks"] == (
        "In score, over headline pairs of model and task, Head-Aware is clearly better than "
        "StreamingLLM in 1 of 1, and clearly worse than H2O in 1 of 1."
    )
