"""A configuration becomes the right cells, or one clear error before anything runs."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from kvbudget.errors import UserError
from kvbudget.study import expand as studies

REPO = Path(__file__).parents[2]
SCHEMA = yaml.safe_load((REPO / "workflow/schemas/config.schema.yaml").read_text())


def load(overlay: str | None = None) -> dict:
    config = yaml.safe_load((REPO / "config.yaml").read_text())
    if overlay:
        update_config(
            config, yaml.safe_load((REPO / f"workflow/studies/{overlay}.yaml").read_text())
        )
    return config


def expand(config: dict) -> studies.Study:
    return studies.expand(studies.validate(config, SCHEMA))


@pytest.fixture
def config() -> dict:
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
            "ours": {"policy": "head-aware", "group_mix": 0.5},
        },
        "calibration": {"length": 500},
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
    paths = [cell.path for cell in expand(config).cells]
    assert paths == [
        f"results/s/cells/m/needle/L{length}/{name}.json"
        for length in (500, 1000)
        for name in ("full/Bfull", "h2o/B20p", "h2o/B128", "ours/B20p", "ours/B128")
    ]


def test_a_spec_holds_what_the_cell_depends_on_and_no_titles(config):
    cells = {cell.path: cell for cell in expand(config).cells}
    h2o = cells["results/s/cells/m/needle/L500/h2o/B128.json"]
    assert h2o.spec == {
        "model": "m",
        "dtype": "bfloat16",
        "seed": 1,
        "haystack": "h",
        "task": {"name": "needle", "kind": "niah", "needles": 2},
        "length": 500,
        "method": {"name": "h2o", "policy": "h2o"},
        "budget": 128,
        "samples": {"contexts": 6, "questions": 2},
    }
    ours = cells["results/s/cells/m/needle/L500/ours/B20p.json"]
    assert ours.spec["calibration"] == {"length": 500}
    assert ours.calibration == "results/s/calibrations/m.json"
    assert h2o.calibration is None


def test_a_method_may_have_a_calibration_of_its_own(config):
    config["calibrations"] = {"copying": {"tasks": ["recall"]}}
    config["methods"]["other"] = config["methods"]["ours"] | {"calibration": "copying"}
    config["experiments"][0]["methods"] = ["ours", "other", "full"]
    study = expand(config)
    assert study.calibrations == {
        "results/s/calibrations/m.json": {"length": 500},
        "results/s/calibrations/m/copying.json": {"length": 500, "tasks": ["recall"]},
    }
    (other,) = {cell.calibration for cell in study.cells if cell.method == "other"}
    assert other == "results/s/calibrations/m/copying.json"
    assert all("calibration" not in cell.spec["method"] for cell in study.cells)


def test_a_task_may_override_samples(config):
    config["experiments"][0]["tasks"] = ["ppl"]
    spec = expand(config).cells[0].spec
    assert spec["samples"] == {"contexts": 1, "questions": 2}
    assert spec["task"] == {"name": "ppl", "kind": "perplexity"}


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
        ("methods/ours/groupmix", 1, r"'groupmix' at methods: ours, did you mean 'group_mix'"),
        ("methods/ours/group_mix", 2, r"methods: ours: group_mix: 2 is greater than the maximum"),
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
        ("tasks/needle/needles", "two", r"tasks: needle: needles must be of type int, not 'two'"),
        ("tasks/needle/needles", 0, r"tasks: needle: needles must be at least 1, not 0"),
        ("methods/h2o/group_mix", 0.5, r"methods: h2o: policy 'h2o' has no option 'group_mix'"),
        ("methods/h2o/bits", 3, r"methods: h2o: bits: 3 is not one of \[2, 4, 8\]"),
        ("methods/h2o/value_bits", 2, r"methods: h2o: value_bits needs bits"),
        (
            "methods/h2o",
            {"policy": "streaming-llm", "bits": 4},
            r"methods: h2o: bits: keys that move .* use positions: absolute",
        ),
        ("methods/h2o/calibration", "x", r"policy 'h2o' has no option 'calibration'"),
        ("methods/ours/calibration", "x", r"calibration: there is no 'x'; calibrations has "),
        ("calibrations", {"c": {"lenght": 5}}, r"unknown key 'lenght' at calibrations: c, did"),
        ("calibration/lenght", 500, r"unknown key 'lenght' at calibration, did you mean 'length'"),
        ("calibration/tasks", ["songs"], r"calibration: tasks: number 1: 'songs' is not one of"),
        ("calibration/thresholds", {"retrieval": 0.1}, r"thresholds: 'induction' is a required"),
        ("calibration/length", 3000, r"calibration: length 3000 is over the context of model 'm'"),
        ("haystacks/h/pth", "y", r"haystacks: h: unknown key 'pth' for source file"),
        ("haystacks/h/source", "web", r"haystacks: h: unknown source 'web'"),
        ("device", "gpu", r"config: device: 'gpu' is not one of"),
        ("study", "models", r"study: results/models belongs to all studies"),
        (r"models/x; rm -rf ~ \\input{…}", {"source": "random"}, r"bad name 'x; rm -rf ~"),
        ("experiments/0/name", "$(reboot)", r"name: '\$\(reboot\)' does not match"),
        ("samples", {"contexts": 0}, r"samples: contexts: 0 is less than the minimum of 1"),
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
    assert study.haystacks == ["h", "p"]
    spec = next(cell.spec for cell in study.cells if cell.task == "wait")
    assert spec["task"] == {"name": "wait", "kind": "streaming", "k": 1, "phi": 0}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("tasks/wait/haystack", "q", r"tasks: wait: haystack: there is no 'q'"),
        ("tasks/wait/haystack", "h", r"tasks: wait: haystack 'h' has no translation"),
        ("tasks/wait/phi", -1, r"tasks: wait: phi must be auto or 0 or more, not -1"),
        ("tasks/wait/phi", "0", r"tasks: wait: phi must be auto or 0 or more, not '0'"),
        ("tasks/wait/k", 0, r"tasks: wait: k must be at least 1, not 0"),
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


def test_what_is_planned_is_what_the_modules_know():
    from kvbudget.calibration import calibrate as calibration
    from kvbudget.calibration import prompts as calibration
    from kvbudget.policies import repetition as reconstruction
    from kvbudget.policies.make import make_policy
    from kvbudget.tasks import get

    known = SCHEMA["$defs"]["calibration"]["properties"]
    assert set(known) == set(calibration.DEFAULTS)
    assert known["tasks"]["items"]["enum"] == list(calibration.TASKS)
    assert set(known["thresholds"]["properties"]) == set(calibration.DEFAULTS["thresholds"])
    for name in studies.policies():
        policy = make_policy(name, **studies.policy_parameters(name))
        assert policy.reconstructs == (name in studies.HOLDING_POLICIES)
    assert studies.REPEATED == reconstruction.CHUNK
    for kind in studies.task_kinds():
        assert studies.task_defaults(kind) == get(kind).DEFAULTS


def test_planning_imports_no_torch():
    code = "import sys, kvbudget.study.expand; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_refuses_two_experiments_of_one_name(config):
    config["experiments"].append(config["experiments"][0])
    with pytest.raises(UserError, match="two are named 'one'"):
        expand(config)


def test_validate_fills_defaults_and_leaves_its_argument_alone(config):
    before = copy.deepcopy(config)
    filled = studies.validate(config, SCHEMA)
    assert config == before
    assert filled["samples"] == {"contexts": 6, "questions": 2}
    assert filled["dtype"] == "bfloat16"


@pytest.mark.parametrize("overlay", [None, "tiny", "cpu", "full", "streaming"])
def test_shipped_studies_are_valid(overlay):
    study = expand(load(overlay))
    assert study.cells
    assert study.name == (overlay or "default")
    # Each method that evicts can be compared with the full cache on the same samples.
    full = {(c.model, c.task, c.length) for c in study.cells if c.spec["budget"] is None}
    assert {(c.model, c.task, c.length) for c in study.cells} == full


def test_the_full_study_has_the_lengths_budgets_and_samples_of_the_question():
    study = expand(load("full"))
    assert {cell.length for cell in study.cells} == {2000, 5000, 10000, 20000}
    assert {2048, 4096, 8192} <= {cell.budget for cell in study.cells}
    assert {
        c.spec["samples"]["contexts"] * c.spec["samples"]["questions"] for c in study.cells
    } == {100}
    for name in study.models:
        assert len(study.config["models"][name]["revision"]) == 40


def test_stale_names_records_of_other_code_or_spec(config, tmp_path):
    study = expand(config)
    current, other_code, other_spec, broken = study.cells[:4]

    def write(cell, **changes):
        file = tmp_path / cell.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"spec": cell.spec, "code": cell.code} | changes))

    write(current)
    write(other_code, code="0")
    write(other_spec, spec=other_spec.spec | {"seed": 2})
    write(broken)
    (tmp_path / broken.path).write_text('{"spec": ')
    assert study.stale(tmp_path) == [other_code.path, other_spec.path, broken.path]


def test_command_writes_the_plan(config, tmp_path):
    filled = studies.validate(config, SCHEMA)
    out = tmp_path / "results" / "study.json"
    command = [sys.executable, "-m", "kvbudget.study.expand", "--config", json.dumps(filled)]
    subprocess.run([*command, "--out", str(out)], check=True)
    plan = json.loads(out.read_text())
    assert plan == json.loads(json.dumps(studies.expand(filled).plan()))
    assert plan["study"] == "s"
    assert all(len(cell["code"]) == 64 for cell in plan["cells"])
