"""A configuration becomes the right cells, or one clear error before anything runs."""

import copy
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from kvbudget.calibration.options import DEFAULTS, OPTIONS, RULES, TASKS
from kvbudget.errors import UserError
from kvbudget.policies import registry as methods
from kvbudget.study import config as configs
from kvbudget.study import expand as studies
from kvbudget.study import schema
from kvbudget.study.identity import DIGITS
from kvbudget.study.plan import Planned, Study, load_study

REPO = Path(__file__).parents[2]
SCHEMA = yaml.safe_load((REPO / "workflow/schemas/config.schema.yaml").read_text())


def load(overlay: str | None = None) -> dict:
    config = yaml.safe_load((REPO / "config.yaml").read_text())
    if overlay:
        update_config(
            config, yaml.safe_load((REPO / f"workflow/studies/{overlay}.yaml").read_text())
        )
    return config


def expand(config: dict, root: Path = Path()) -> Study:
    return studies.expand(configs.validate(config, SCHEMA), root)


def place(path: str) -> str:
    """A path without the identity of what lies there."""
    return re.sub(rf"-[0-9a-f]{{{DIGITS}}}(?=\.json$)", "", path)


def cell_of(study: Study, method: str, budget: str, length: int = 500) -> Planned:
    (found,) = (
        cell
        for cell in study.cells
        if (cell.method, cell.budget, cell.length) == (method, budget, length)
    )
    return found


#: The calibration of the study below, as specs have it.
CALIBRATED = {"haystack": "h", **DEFAULTS, "length": 400, "scorer_lengths": [300]}


@pytest.fixture
def config(tmp_path, monkeypatch) -> dict:
    monkeypatch.chdir(tmp_path)
    for name in ("x.txt", "y.txt"):
        Path(name).write_text("In the beginning.\n")
    return {
        "study": "s",
        "models": {"m": {"source": "random", "context": 2000}},
        "haystacks": {"h": {"source": "file", "path": "x.txt"}},
        "haystack": "h",
        "tasks": {
            "needle": {"kind": "niah", "needles": 2, "title": "T"},
            "ppl": {"kind": "perplexity", "samples": {"contexts": 1}},
        },
        "methods": {
            "full": {"policy": "full"},
            "h2o": {"policy": "h2o", "title": "H2O"},
            "ours": {"policy": "head-aware", "safeguard": 0.5},
        },
        "calibration": {"length": 400, "scorer_lengths": [300]},
        "experiments": [
            {
                "name": "one",
                "models": ["m"],
                "tasks": ["needle"],
                "lengths": [500, 1000],
                "methods": ["full", "h2o", "ours"],
                "budgets": ["20%", 128],
            }
        ],
    }


def test_full_has_one_cell_a_length_and_the_others_one_a_budget(config):
    paths = [place(cell.path) for cell in expand(config).cells]
    assert paths == [
        f"results/cells/m/needle/L{length}/{name}.json"
        for length in (500, 1000)
        for name in ("full/Bfull", "h2o/B20p", "h2o/B128", "ours/B20p", "ours/B128")
    ]


def test_a_spec_holds_what_the_cell_depends_on_and_no_titles(config):
    study = expand(config)
    h2o = cell_of(study, "h2o", "128")
    assert h2o.spec == {
        "model": "m",
        "dtype": "bfloat16",
        "seed": 1,
        "split": "test",
        "haystack": "h",
        "task": {"name": "needle", "kind": "niah", "needles": 2, "values": 1, "queries": 1},
        "length": 500,
        "method": {"name": "h2o", "policy": "h2o", "bounded": "context"},
        "budget": 128,
        "samples": {"contexts": 6, "questions": 2},
    }
    ours = cell_of(study, "ours", "20p")
    assert ours.spec["calibration"] == CALIBRATED
    assert ours.spec["method"]["safeguard"] == 0.5
    assert ours.spec["method"]["rule"] == methods.METHODS["head-aware"].options["rule"].default
    assert place(ours.calibration) == "results/calibrations/m/default.json"
    assert h2o.calibration is None


def test_a_method_that_sees_hidden_states_needs_its_map(config):
    config["methods"] |= {
        "zap": {"policy": "kvzap"},
        "hidden": {"policy": "head-aware", "features": "hidden"},
    }
    for method, needed in (("zap", "kvzap"), ("hidden", "hidden")):
        config["experiments"][0]["methods"] = [method]
        config["calibration"]["hidden_maps"] = []
        with pytest.raises(UserError, match=rf"methods: {method}: .* hidden_maps: \[{needed}\]"):
            expand(config)
        config["calibration"]["hidden_maps"] = [needed]
        assert all(
            cell.spec["calibration"]["hidden_maps"] == [needed] for cell in expand(config).cells
        )


def test_a_method_may_have_a_calibration_of_its_own(config):
    config["calibrations"] = {"copying": {"tasks": ["recall"]}}
    config["methods"]["other"] = config["methods"]["ours"] | {"calibration": "copying"}
    config["experiments"][0]["methods"] = ["ours", "other", "full"]
    study = expand(config)
    made = {each.name: (place(each.path), each.spec) for each in study.calibrations}
    assert made == {
        "default": ("results/calibrations/m/default.json", CALIBRATED),
        "copying": (
            "results/calibrations/m/copying.json",
            {**CALIBRATED, "tasks": ["recall"]},
        ),
    }
    (other,) = {cell.calibration for cell in study.cells if cell.method == "other"}
    assert place(other) == "results/calibrations/m/copying.json"
    assert all("calibration" not in cell.spec["method"] for cell in study.cells)


def test_a_calibration_may_be_made_of_another_text(config):
    """And then is another result, as are the cells that use it, and no others."""
    config["haystacks"]["p"] = {"source": "file", "path": "y.txt"}
    Path("y.txt").write_text("Au commencement.\n")
    config["calibrations"] = {"french": {"haystack": "p"}}
    config["methods"]["other"] = config["methods"]["ours"] | {"calibration": "french"}
    config["experiments"][0]["methods"] = ["ours", "other", "full"]
    study = expand(config)
    own, french = study.calibrations
    assert french.spec == {**own.spec, "haystack": "p"}
    assert [Path(each.text).name.rpartition("-")[0] for each in (own, french)] == ["h", "p"]
    assert study.texts == [own.text, french.text]
    before = {cell.method: cell.identity for cell in study.cells}
    assert all(cell.text == own.text for cell in study.cells)
    Path("y.txt").write_text("Au commencement, Dieu.\n")
    after = {cell.method: cell.identity for cell in expand(config).cells}
    assert {name for name in after if after[name] != before[name]} == {"other"}
    # For all methods of a study.
    config["calibration"]["haystack"] = "p"
    assert {each.text.partition("/p-")[0] for each in expand(config).calibrations} == {
        "results/text"
    }


def test_a_method_may_be_measured_with_several_seeds_of_its_calibration(config):
    config["methods"]["ours"]["calibration_seeds"] = [1, 2, 5]
    config["methods"]["once"] = {"policy": "head-aware", "title": "Once"}
    config["experiments"][0] |= {"methods": ["ours", "once"], "lengths": [500], "budgets": ["20%"]}
    study = expand(config)
    ours = [cell for cell in study.cells if cell.method == "ours"]
    assert [cell.spec["calibration"]["seed"] for cell in ours] == [1, 2, 5]
    assert len({cell.key for cell in ours}) == 1 and len({cell.path for cell in ours}) == 3
    assert [place(cell.calibration) for cell in ours] == [
        f"results/calibrations/m/default{seed}.json" for seed in ("", "-seed-2", "-seed-5")
    ]
    # The seed of the calibration itself is the calibration that others use.
    (once,) = (cell for cell in study.cells if cell.method == "once")
    assert once.calibration == ours[0].calibration
    assert len(study.calibrations) == 3
    assert all("calibration_seeds" not in cell.spec["method"] for cell in study.cells)


def test_a_calibration_named_like_a_seed_is_another(config):
    config["calibrations"] = {"default-seed-2": {"tasks": ["recall"]}}
    config["methods"]["ours"]["calibration_seeds"] = [1, 2]
    config["methods"]["other"] = {"policy": "head-aware", "calibration": "default-seed-2"}
    config["experiments"][0]["methods"] = ["ours", "other"]
    study = expand(config)
    assert len({each.path for each in study.calibrations}) == 3
    (other,) = {cell.calibration for cell in study.cells if cell.method == "other"}
    assert other not in {cell.calibration for cell in study.cells if cell.method == "ours"}


def test_families_are_declared_and_have_a_default(config):
    assert expand(config).config["families"] == ["experiment", "metric", "reference"]
    assert "families" in yaml.safe_load((REPO / "config.yaml").read_text())


def test_a_task_may_override_samples(config):
    config["experiments"][0]["tasks"] = ["ppl"]
    spec = expand(config).cells[0].spec
    assert spec["samples"] == {"contexts": 1, "questions": 2}
    assert spec["task"] == {"name": "ppl", "kind": "perplexity", "chunk": 64}


def test_cells_that_experiments_share_appear_once(config):
    again = copy.deepcopy(config["experiments"][0]) | {"name": "two", "lengths": [1000]}
    again["budgets"] = ["20.0%", "128"]
    config["experiments"].append(again)
    study = expand(config)
    assert len(study.cells) == 10
    by_length = {cell.length: cell.experiments for cell in study.cells}
    assert by_length == {500: ("one",), 1000: ("one", "two")}


def test_lengths_by_model_restricts_one_model(config):
    config["models"]["short"] = {"source": "random", "context": 600}
    experiment = config["experiments"][0]
    experiment |= {"models": ["m", "short"], "lengths_by_model": {"short": [500]}}
    lengths = {(cell.model, cell.length) for cell in expand(config).cells}
    assert lengths == {("m", 500), ("m", 1000), ("short", 500)}


def test_an_unused_model_method_or_title_changes_no_spec_or_path(config):
    before = [(cell.path, cell.spec) for cell in expand(config).cells]
    config["models"]["other"] = {"source": "random"}
    config["methods"]["recent"] = {"policy": "streaming-llm"}
    config["methods"]["h2o"]["title"] = "Another"
    config["tasks"]["needle"].pop("title")
    assert [(cell.path, cell.spec) for cell in expand(config).cells] == before


def change(config: dict, path: str, value: object) -> None:
    *above, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    for step in above:
        config = config[step]
    config[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sed", 1, r"unknown key 'sed' at the top level, did you mean 'seed'\?"),
        ("experiments/0/budgts", [1], r"'budgts' at experiments: number 1, did you mean 'budgets'"),
        ("methods/ours/safegard", 1, r"'safegard' at methods: ours, did you mean 'safeguard'"),
        (
            "methods/ours/safeguard",
            2,
            r"methods: ours: safeguard must be a number from 0 to 1, not 2",
        ),
        ("dtype", "int8", r"config: dtype: 'int8' is not one of"),
        ("study", "a/b", r"config: study: 'a/b' does not match"),
        ("models/A B", {"source": "random"}, r"config: models: bad name 'A B'; use lower-case"),
        ("models/m/architecure", "llama", r"models: m: unknown key 'architecure'"),
        ("models/m/size", {"layers": 1}, r"models: m: size: key 'parameters' is required"),
        ("models/m/gated", "yes", r"models: m: gated must be true or false, not 'yes'"),
        ("haystack", "hh", r"haystack: there is no 'hh', did you mean 'h'"),
        (
            "methods/h2o/policy",
            "h20",
            r"methods: h2o: policy: there is no 'h20', did you mean 'h2o'",
        ),
        (
            "tasks/needle/kind",
            "nia",
            r"tasks: needle: kind: there is no 'nia', did you mean 'niah'",
        ),
        ("experiments/0/methods", ["hto"], r"experiments: one: methods: there is no 'hto'"),
        ("experiments/0/models", ["n"], r"experiments: one: models: there is no 'n'"),
        (
            "experiments/0/tasks",
            ["needles"],
            r"tasks: there is no 'needles', did you mean 'needle'",
        ),
        ("experiments/0/lengths", [150], r"length 150 is too short; use at least 200"),
        ("experiments/0/lengths", [4000], r"over the context of model 'm' \(2000 tokens\)"),
        ("experiments/0/lengths_by_model", {"n": [500]}, r"lengths_by_model: there is no 'n'"),
        ("experiments/0/budgets", [500], r"budget 500: at length 500 nothing would be evicted"),
        ("experiments/0/budgets", [7], r"budget 7: at length 500 that is 7 tokens, under the 8"),
        ("experiments/0/budgets", ["1%"], r"budget '1%': at length 500 that is 5 tokens"),
        ("experiments/0/budgets", [11], r"method 'ours': budget 11: .* under the 12"),
        ("methods/ours/recent", 150, r"method 'ours': budget '20%': .* 100 tokens, under the 154"),
        (
            "tasks/needle/kind",
            "perplexity",
            r"tasks: needle: unknown option 'needles'; it has chunk",
        ),
        (
            "tasks/needle/needels",
            2,
            r"tasks: needle: unknown option 'needels', did you mean 'needl",
        ),
        (
            "tasks/needle/needles",
            "two",
            r"config: tasks: needle: needles: 'two' is not of type 'integer'",
        ),
        (
            "tasks/needle/needles",
            0,
            r"config: tasks: needle: needles: 0 is less than the minimum of 1",
        ),
        ("methods/h2o/safeguard", 0.5, r"methods: h2o: unknown option 'safeguard'; it has none"),
        ("methods/h2o/bits", 3, r"methods: h2o: bits: 3 is not one of \[2, 4, 8\]"),
        ("methods/h2o/value_bits", 2, r"methods: h2o: value_bits needs bits"),
        (
            "methods/h2o",
            {"policy": "streaming-llm", "bits": 4},
            r"methods: h2o: bits: keys that move .* use positions: absolute",
        ),
        (
            "methods/h2o/calibration",
            "x",
            r"methods: h2o: unknown option 'calibration'; it has none",
        ),
        (
            "methods/h2o/calibration_seeds",
            [1, 2],
            r"methods: h2o: unknown option 'calibration_seeds'; it has none",
        ),
        ("methods/ours/calibration_seeds", [1], r"methods: ours: calibration_seeds: \[1\] is too"),
        ("methods/ours/calibration_seeds", [1, 1], r"calibration_seeds: .* non-unique"),
        ("families", ["metrics"], r"config: families: number 1: 'metrics' is not one of"),
        ("families", [], r"config: families: \[\] "),
        ("methods/ours/calibration", "x", r"calibration: there is no 'x'; calibrations has "),
        ("calibrations", {"c": {"lenght": 5}}, r"unknown key 'lenght' at calibrations: c, did"),
        ("calibration/lenght", 500, r"unknown key 'lenght' at calibration, did you mean 'length'"),
        ("calibration/tasks", ["songs"], r"calibration: tasks: number 1: 'songs' is not one of"),
        ("calibration/thresholds", {"retrieval": 0.1}, r"thresholds: 'induction' is a required"),
        ("calibration/length", 3000, r"calibration: length 3000 is over the context of model 'm'"),
        ("calibration/haystack", "x", r"calibration: haystack: there is no 'x'; haystacks has h"),
        ("calibrations", {"c": {"haystack": "x"}}, r"calibrations: c: haystack: there is no 'x'"),
        (
            "calibration/scorer_lengths",
            [300, 1500],
            r"scorer_lengths reads a context of 1500 tokens twice, over the 2000 tokens of model",
        ),
        ("haystacks/h/pth", "y", r"haystacks: h: unknown key 'pth' for source file"),
        ("haystacks/h/source", "web", r"haystacks: h: unknown source 'web'"),
        ("device", "gpu", r"config: device: 'gpu' is not one of"),
        ("study", "sections", r"study: folders of the name 'sections' belong to all"),
        ("study", "s-draft", r"study: folders of the name 's-draft' .* choose another name"),
        ("methods/ours/title", "H2O", r"methods: h2o and ours have one title, 'H2O'; change one"),
        ("study", "models", r"study: folders of the name 'models' belong to all"),
        (r"models/x; rm -rf ~ \\input{…}", {"source": "random"}, r"bad name 'x; rm -rf ~"),
        ("experiments/0/name", "$(reboot)", r"name: '\$\(reboot\)' does not match"),
        ("samples", {"contexts": 0}, r"samples: contexts: 0 is less than the minimum of 1"),
        ("experiments/0/orders", [["h2o"]], r"orders: number 1: \['h2o'\] is too short"),
        ("experiments/0/orders", [["h2o", "hto"]], r"one: orders: there is no 'hto'"),
        ("experiments/0/orders", [["h2o", "full"]], r"method 'full' has no budget at which it"),
        ("experiments/0/budgets", ["0%"], r"budget '0%': a share must be above 0%"),
        ("experiments/0/budgets", ["120%"], r"budget '120%': a share must be above 0%"),
        ("experiments/0/budgets", ["many"], r"budget 'many': give tokens as in 256, or a share"),
        ("experiments/0/budgets", [], r"budgets is empty, but method 'h2o' needs one"),
        ("experiments", [], r"config: experiments: \[\] should be non-empty"),
    ],
)
def test_refuses_with_one_line_that_names_the_key(config, path, value, message):
    change(config, path, value)
    with pytest.raises(UserError, match=message) as error:
        expand(config)
    assert "\n" not in str(error.value)


@pytest.fixture
def streaming(config) -> dict:
    config["haystacks"]["p"] = {"source": "file", "path": "x.txt", "translation": "y.txt"}
    config["tasks"]["wait"] = {"kind": "streaming", "haystack": "p", "k": 1, "phi": 0}
    config["methods"]["recent"] = {"policy": "streaming-llm", "positions": "absolute"}
    config["experiments"][0] |= {"tasks": ["needle", "wait"], "methods": ["full", "recent"]}
    return config


def test_a_task_may_have_a_text_of_its_own(streaming):
    study = expand(streaming)
    texts = {cell.task: cell.spec["haystack"] for cell in study.cells}
    assert texts == {"needle": "h", "wait": "p"}
    names = [Path(path).name.rpartition("-")[0] for path in study.texts]
    assert names == ["h", "p"]
    spec = next(cell.spec for cell in study.cells if cell.task == "wait")
    languages = {"source": "English", "target": "French"}
    assert spec["task"] == {"name": "wait", "kind": "streaming", "k": 1, "phi": 0, **languages}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("tasks/wait/haystack", "q", r"tasks: wait: haystack: there is no 'q'"),
        ("tasks/wait/haystack", "h", r"tasks: wait: haystack 'h' has no translation"),
        (
            "tasks/wait/phi",
            -1,
            r"config: tasks: wait: phi must be auto or an integer of 0 or more, not -1",
        ),
        (
            "tasks/wait/phi",
            "0",
            r"config: tasks: wait: phi must be auto or an integer of 0 or more, not '0'",
        ),
        ("tasks/wait/k", 0, r"config: tasks: wait: k: 0 is less than the minimum of 1"),
        (
            "methods/recent",
            {"policy": "streaming-llm"},
            r"method 'recent' cannot stream with positions: cache; use positions: absolute",
        ),
        ("methods/full/phi", 0, r"method 'full' cannot stream with phi: 0; use phi: auto"),
    ],
)
def test_what_cannot_stream_is_refused(streaming, path, value, message):
    change(streaming, path, value)
    with pytest.raises(UserError, match=message):
        expand(streaming)


def test_the_budget_is_the_context_s_unless_a_task_or_a_method_says_otherwise(streaming):
    streaming["methods"]["h2o-always"] = {"policy": "h2o", "bounded": "always"}
    streaming["methods"]["h2o"] = {"policy": "h2o"}
    streaming["experiments"][0] |= {
        "tasks": ["needle", "ppl", "wait"],
        "methods": ["full", "h2o", "h2o-always"],
        "lengths": [500],
    }
    found = {
        (cell.kind, cell.method): cell.spec["method"]["bounded"] for cell in expand(streaming).cells
    }
    for method in ("full", "h2o"):
        assert found["niah", method] == "context"
        assert found["perplexity", method] == found["streaming", method] == "always"
    assert {found[kind, "h2o-always"] for kind in ("niah", "perplexity")} == {"always"}


@pytest.mark.parametrize("kind", ["perplexity", "streaming"])
def test_a_context_alone_is_not_bounded_where_all_is_read_through_the_cache(streaming, kind):
    streaming["methods"]["x"] = {"policy": "h2o", "bounded": "context"}
    task = {"perplexity": "ppl", "streaming": "wait"}[kind]
    streaming["experiments"][0] |= {"tasks": [task], "methods": ["full", "x"]}
    message = rf"task '{task}': method 'x' bounds the context alone, and {kind} is bounded through"
    with pytest.raises(UserError, match=message):
        expand(streaming)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"policy": "full", "bounded": "always"}, r"methods: x: policy 'full' has no budget"),
        ({"policy": "h2o", "bounded": "all"}, r"methods: x: bounded: 'all' is not one of"),
    ],
)
def test_what_cannot_be_bounded_is_named(config, entry, message):
    config["methods"]["x"] = entry
    with pytest.raises(UserError, match=message):
        expand(config)


@pytest.mark.parametrize("kind", ["perplexity", "streaming"])
def test_a_method_that_needs_the_whole_context_is_refused_where_none_is_held(streaming, kind):
    streaming["methods"]["zip"] = {"policy": "kvzip"}
    task = {"perplexity": "ppl", "streaming": "wait"}[kind]
    streaming["experiments"][0] |= {"tasks": [task], "methods": ["full", "zip"]}
    message = rf"task '{task}': method 'zip' needs the whole context .* and {kind} is bounded"
    with pytest.raises(UserError, match=message):
        expand(streaming)
    streaming["experiments"][0] |= {"tasks": ["needle"], "lengths": [1100]}
    with pytest.raises(UserError, match=r"'zip' reads a context of 1100 tokens twice, over the"):
        expand(streaming)
    streaming["methods"]["zip"]["prefill_chunk"] = 64
    with pytest.raises(
        UserError, match=r"methods: zip: policy 'kvzip' needs .* drop prefill_chunk"
    ):
        expand(streaming)


def test_perplexity_reads_half_of_its_text_as_the_prompt_that_a_share_is_of(config):
    config["experiments"][0] |= {"tasks": ["ppl"], "lengths": [500], "budgets": ["4%"]}
    with pytest.raises(UserError, match=r"'4%': at length 500 that is 10 tokens, under the 12"):
        expand(config)


def test_the_schema_is_what_methods_tasks_and_calibrations_declare():
    assert schema.as_yaml() == (REPO / "workflow/schemas/config.schema.yaml").read_text()
    of_method = SCHEMA["properties"]["methods"]["additionalProperties"]["properties"]
    assert of_method["safeguard"]["description"].startswith("snapkv, keydiff, kvzap, ")
    of_task = SCHEMA["properties"]["tasks"]["additionalProperties"]["properties"]
    assert of_task["needles"] == {
        "description": "niah. Keys of a context.",
        "type": "integer",
        "minimum": 1,
    }


def test_what_is_planned_is_what_the_modules_know():
    from tiny import tiny_calibration

    from kvbudget.calibration import prompts
    from kvbudget.policies import rules
    from kvbudget.policies.fitted import Fitted
    from kvbudget.policies.make import make_policy

    assert set(TASKS) == set(prompts.TASKS)
    assert set(RULES) == set(rules.RULES)
    assert {"calibration", *OPTIONS} == {"calibration", *DEFAULTS}
    ours = {name: each for name, each in methods.METHODS.items() if not each.elsewhere}
    for name, method in ours.items():
        defaults = {key: option.default for key, option in method.options.items()}
        calibration = Fitted(tiny_calibration(2, 3, 6)) if method.calibrated else None
        for features in ("group", "hidden") if "features" in defaults else (None,):
            given = {"features": features} if features else {}
            policy = make_policy(name, calibration, **given)
            needed = method.hidden_map(defaults | given)
            assert policy.sees_input == (needed is not None)
            assert needed in {None, *methods.HIDDEN_MAPS}
        assert policy.holds_context == method.holds_context
        assert policy.relative_positions == (name == "streaming-llm")
        assert method.moves_keys(defaults) == policy.relative_positions


def test_planning_imports_no_torch():
    code = "import sys, kvbudget.study.expand; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_refuses_two_experiments_of_one_name(config):
    config["experiments"].append(config["experiments"][0])
    with pytest.raises(UserError, match="two are named 'one'"):
        expand(config)


def test_validate_fills_defaults_and_leaves_its_argument_alone(config):
    before = copy.deepcopy(config)
    filled = configs.validate(config, SCHEMA)
    assert config == before
    assert filled["samples"] == {"contexts": 6, "questions": 2}
    assert filled["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "overlay", [None, *sorted(path.stem for path in (REPO / "workflow/studies").glob("*.yaml"))]
)
def test_shipped_studies_are_valid(overlay):
    study = expand({**load(overlay), "published": "ignore"})
    assert study.cells
    assert study.name == (overlay or "default")
    # Each method that evicts can be compared with the full cache on the same samples.
    full = {(c.model, c.task, c.length) for c in study.cells if c.spec["budget"] is None}
    assert {(c.model, c.task, c.length) for c in study.cells} == full


def test_the_full_study_has_the_lengths_budgets_and_samples_of_the_question():
    study = expand(load("full"))
    assert {cell.length for cell in study.cells} == {2000, 5000, 10000, 20000}
    assert {2048, 4096, 8192} <= {cell.spec["budget"] for cell in study.cells}
    assert {
        c.spec["samples"]["contexts"] * c.spec["samples"]["questions"] for c in study.cells
    } == {100}
    for name in study.models:
        assert len(study.config["models"][name]["revision"]) == 40


def test_the_name_of_a_result_holds_all_that_it_depends_on(config, tmp_path):
    """What another seed, option, code, model or text gives has another name."""
    config["methods"]["ours"] |= {"calibration": "c"}
    config["calibrations"] = {"c": {"seed": 3}}

    def names(changed: dict) -> dict[str, str]:
        return {place(cell.path): cell.path for cell in expand(changed).cells}

    before = names(config)
    assert names(config) == before

    def changed_by(path: str, value: object) -> set[str]:
        other = copy.deepcopy(config)
        change(other, path, value)
        after = names(other)
        assert after.keys() == before.keys()
        return {name.split("/")[5] for name in before if before[name] != after[name]}

    everything = {"full", "h2o", "ours"}
    assert changed_by("seed", 2) == everything
    assert changed_by("split", "development") == everything
    assert changed_by("dtype", "float32") == everything
    assert changed_by("models/m/seed", 5) == everything
    assert changed_by("models/m/title", "M") == set()
    assert changed_by("tasks/needle/title", "N") == set()
    assert changed_by("methods/h2o/stride", 3) == {"h2o"}
    assert changed_by("calibrations/c/seed", 4) == {"ours"}
    assert changed_by("study", "another") == set()
    (tmp_path / "x.txt").write_text("In the end.\n")
    assert not set(names(config).values()) & set(before.values())
    (tmp_path / "x.txt").write_text("In the beginning.\n")
    assert names(config) == before
    Path("x.txt").unlink()
    with pytest.raises(UserError, match=r"haystack h: file x\.txt does not exist; put it there"):
        expand(config)
    config["haystacks"]["h"]["sha256"] = "0" * 64  # then results of it can be used without it
    assert names(config).keys() == before.keys()


def test_a_method_s_facts_are_part_of_its_cells_names(config, monkeypatch):
    before = expand(config)
    known = dataclasses.replace(methods.METHODS["h2o"], rereads=64)
    monkeypatch.setitem(methods.METHODS, "h2o", known)
    after = expand(config)
    assert cell_of(after, "full", "full").path == cell_of(before, "full", "full").path
    assert cell_of(after, "h2o", "128").path != cell_of(before, "h2o", "128").path


def test_a_model_of_one_s_own_counts_as_another_when_its_files_change(config, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"0")
    config["models"]["m"] = {"source": "local", "path": str(folder), "context": 2000}
    before = cell_of(expand(config), "full", "full").path
    assert cell_of(expand(config), "full", "full").path == before
    (folder / "model.safetensors").write_bytes(b"01")
    assert cell_of(expand(config), "full", "full").path != before


def test_command_writes_the_plan(config, tmp_path):
    filled = configs.validate(config, SCHEMA)
    out = tmp_path / "results/s/study-1.json"
    command = [sys.executable, "-m", "kvbudget", "expand", "--config", json.dumps(filled)]
    given = {**os.environ, "KVBUDGET_COMMAND": "snakemake --configfile 'my studies/s.yaml'"}
    subprocess.run([*command, "--out", str(out)], check=True, cwd=tmp_path, env=given)
    read, made = load_study(out), studies.expand(filled)
    assert (read.cells, read.calibrations) == (made.cells, made.calibrations)
    assert (read.root, read.name, read.config) == (tmp_path, "s", filled)
    assert read.run(["a b"]) == "snakemake --configfile 'my studies/s.yaml' -- 'a b'"
    for code in {cell.code for cell in read.cells}:
        parts = json.loads((tmp_path / f"results/code/{code}.json").read_text())
        assert "kvbudget.run.cell" in parts and "torch" in parts


@pytest.mark.parametrize("overlay", ["tiny", "full", "frontier", "bounded"])
def test_a_study_is_read_as_snakemake_reads_it(overlay):
    assert configs.read(overlay, REPO) == configs.validate(load(overlay), SCHEMA)


def test_a_study_that_is_not_there_and_one_of_one_s_own(tmp_path):
    with pytest.raises(UserError, match="there is no study 'ful', did you mean 'full'"):
        configs.read("ful", REPO)
    own = tmp_path / "my study.yaml"
    own.write_text("study: mine\nseed: 5\n")
    assert configs.read(str(own), REPO)["seed"] == 5
    own.write_text("study: [mine\n")
    with pytest.raises(UserError, match=r"my study\.yaml is not YAML"):
        configs.read(str(own), REPO)
