"""A study: from the configuration to the list of cells to compute. Imports no torch.

`python -m kvbudget.study.expand --config JSON --out study.json` writes the expanded plan, which the
analysis and the paper read, and beside it code/DIGEST.json: what each digest of code stands for, so
that a later plan can tell which modules have changed. The Snakefile uses the same functions to know
its targets, so what is planned, computed and reported cannot drift apart.
"""

import argparse
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from kvbudget import options
from kvbudget.cache.budget import MINIMUM, SINKS
from kvbudget.errors import UserError, run_cli
from kvbudget.options import suggest
from kvbudget.policies import registry as methods
from kvbudget.policies.registry import METHODS
from kvbudget.run.protocols import PROTOCOLS
from kvbudget.sources import registry, text
from kvbudget.study import provenance
from kvbudget.tasks import registry as tasks
from kvbudget.tasks.registry import KINDS

#: What a calibration is computed by.
_CALIBRATION = ("kvbudget.calibration.calibrate",)
#: A needle, its surroundings and the chat template take this many tokens.
MIN_LENGTH = 200
#: Folders of results/ that are no study's.
_SHARED = frozenset({"models", "text", "logs", "bench", "published"})
#: Keys of an entry that its cells' specs do without: what is only printed, and the name of a
#: calibration, whose content they have.
_NOT_IN_SPECS = frozenset({"title", "calibration"})
#: Keys of a method that the cache takes, whatever the policy.
_OF_ANY_METHOD = frozenset({"policy", "title", "prefill_chunk", "stride", "bits", "value_bits"})
#: Keys of a task that say what it is called, how much of it there is, and on which text.
_OF_ANY_TASK = frozenset({"kind", "title", "samples", "haystack"})


def canonical(value: Any) -> str:
    """JSON with one spelling per value: the identity of a spec."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One process of the study, and the one file it writes."""

    model: str
    task: str
    length: int
    method: str
    budget: str | int | None
    experiments: tuple[str, ...]
    path: str
    spec: dict[str, Any]
    calibration: str | None  # path of the calibration that it needs

    @property
    def code(self) -> str:
        """Digest of the code this cell runs: the mechanism, its policy and its task."""
        return _traced(provenance.code_digest, *self.entry_modules)

    @property
    def entry_modules(self) -> tuple[str, ...]:
        policy, kind = self.spec["method"]["policy"], self.spec["task"]["kind"]
        protocol = PROTOCOLS[tasks.kind(kind).protocol]
        modules = methods.module_of(policy), tasks.module_of(kind)
        return ("kvbudget.run.cell", *modules, protocol)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A validated configuration with everything it asks for."""

    name: str
    config: dict[str, Any]
    cells: tuple[Cell, ...]

    @property
    def directory(self) -> str:
        return f"results/{self.name}"

    @property
    def models(self) -> list[str]:
        """Keys of the models that some cell uses, in order of appearance."""
        return list(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def calibrations(self) -> dict[str, dict[str, Any]]:
        """Paths of the calibrations that some cell needs, and the spec of each."""
        return {
            cell.calibration: cell.spec["calibration"] for cell in self.cells if cell.calibration
        }

    @property
    def haystacks(self) -> list[str]:
        """Keys of the texts that some cell or calibration uses."""
        calibrated = [self.config["haystack"]] if self.calibrations else []
        return list(dict.fromkeys([*(cell.spec["haystack"] for cell in self.cells), *calibrated]))

    @property
    def experiments(self) -> list[str]:
        return [experiment["name"] for experiment in self.config["experiments"]]

    @property
    def calibration_code(self) -> str:
        return _traced(provenance.code_digest, *_CALIBRATION)

    def codes(self) -> dict[str, dict[str, str]]:
        """By digest of code: the digests of its modules and the versions of its libraries."""
        entries = dict.fromkeys(cell.entry_modules for cell in self.cells)
        if self.calibrations:
            entries[_CALIBRATION] = None
        return {
            _traced(provenance.code_digest, *modules): _traced(provenance.code_parts, *modules)
            for modules in entries
        }

    def plan(self) -> dict[str, Any]:
        """What `study.json` holds."""
        return {
            "study": self.name,
            "config": self.config,
            "cells": [
                {
                    "path": cell.path,
                    "model": cell.model,
                    "task": cell.task,
                    "length": cell.length,
                    "method": cell.method,
                    "budget": cell.budget,
                    "experiments": list(cell.experiments),
                    "spec": cell.spec,
                    "code": cell.code,
                }
                for cell in self.cells
            ],
        }

    def stale(self, root: Path = Path()) -> list[str]:
        """Paths of existing cells and calibrations that another spec or other code has made.

        Snakemake compares `params:` with its own notes in `.snakemake/`, which a fresh clone or
        an unpacked archive of results does not have; the records themselves always tell.
        """
        wanted = {cell.path: (cell.spec, cell.code) for cell in self.cells}
        wanted |= {path: (spec, self.calibration_code) for path, spec in self.calibrations.items()}
        return [path for path, identity in wanted.items() if not _current(root / path, *identity)]


def validate(config: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Check a configuration against the JSON schema and fill in the schema's defaults.

    Raises:
        UserError: one line that names the key at fault, with a suggestion for a misspelt one.
    """
    filled = _with_defaults(json.loads(json.dumps(config)), schema)
    errors = jsonschema.Draft202012Validator(schema).iter_errors(filled)
    # Unknown keys first: a misspelt key also makes the right one go missing.
    error = min(errors, key=lambda e: (e.validator != "additionalProperties", e.path), default=None)
    if error is not None:
        raise UserError(_explain(error))
    return filled


def expand(config: Mapping[str, Any]) -> Study:
    """Expand a configuration that `validate` has passed into cells; shared cells appear once.

    Raises:
        UserError: naming what cannot be computed and what to change.
    """
    if config["study"] in _SHARED:
        raise UserError(
            f"study: results/{config['study']} belongs to all studies; choose another name"
        )
    for key, spec in config["models"].items():
        registry.parse(key, spec)
    _known("haystack", config["haystack"], config["haystacks"], "haystacks")
    for key, spec in config["haystacks"].items():
        text.check(key, spec)
    for name, method in config["methods"].items():
        _known(f"methods: {name}: policy", method["policy"], METHODS, "kvbudget.policies")
        _check_method(name, method)
        if "calibration" in method:
            where = f"methods: {name}: calibration"
            _known(where, method["calibration"], config["calibrations"], "calibrations")
    for name, task in config["tasks"].items():
        _known(f"tasks: {name}: kind", task["kind"], KINDS, "kvbudget.tasks")
        given = {key: value for key, value in task.items() if key not in _OF_ANY_TASK}
        options.filled(f"tasks: {name}", given, tasks.options_of(task["kind"]))
        _check_haystack(name, task, config)

    cells: dict[str, Cell] = {}
    names: set[str] = set()
    for experiment in config["experiments"]:
        name = experiment["name"]
        if name in names:
            raise UserError(f"experiments: two are named {name!r}; give one another name")
        names.add(name)
        for cell in _cells(config, experiment):
            known = cells.get(cell.path)
            shared = (*known.experiments, name) if known else (name,)
            cells[cell.path] = Cell(**{**vars(cell), "experiments": shared})
    return Study(name=config["study"], config=dict(config), cells=tuple(cells.values()))


def budget_token(budget: str | int | None) -> str:
    """A budget as it stands in a path: `20p` for 20%, `256` for tokens, `full` for none."""
    if budget is None:
        return "full"
    return f"{budget[:-1]}p" if isinstance(budget, str) else str(budget)


def _cells(config: Mapping[str, Any], experiment: Mapping[str, Any]) -> Iterable[Cell]:
    where = f"experiments: {experiment['name']}"
    for table in ("models", "tasks", "methods"):
        for key in experiment[table]:
            _known(f"{where}: {table}", key, config[table], f"{table}:")
    own_lengths = experiment.get("lengths_by_model", {})
    for key in own_lengths:
        _known(f"{where}: lengths_by_model", key, experiment["models"], f"{where}: models")
    for model in experiment["models"]:
        lengths = own_lengths.get(model, experiment["lengths"])
        for length in lengths:
            _check_length(where, config, model, length)
        for method in experiment["methods"]:
            if _is_calibrated(config["methods"][method]):
                calibration = _calibration(config, config["methods"][method])
                _check_length("calibration", config, model, calibration.get("length", MIN_LENGTH))
            for length in lengths:
                _check_repetition(where, config, model, method, length)
        for task in experiment["tasks"]:
            for method in experiment["methods"]:
                here = f"{where}: task {task!r}"
                _check_fits(here, config["tasks"][task]["kind"], method, config["methods"][method])
            for length in lengths:
                for method in experiment["methods"]:
                    for budget in _budgets(where, config, experiment, task, method, length):
                        yield _cell(config, model, task, length, method, budget)


def _budgets(
    where: str,
    config: Mapping[str, Any],
    experiment: Mapping[str, Any],
    task: str,
    method: str,
    length: int,
) -> list[str | int | None]:
    if config["methods"][method]["policy"] == "full":
        return [None]
    if not experiment["budgets"]:
        raise UserError(f"{where}: budgets is empty, but method {method!r} needs one")
    kind = tasks.kind(config["tasks"][task]["kind"])
    prompt = round(kind.prompt_share * length)
    least = least_budget(config["methods"][method])
    return [
        _budget(f"{where}: method {method!r}: budget {budget!r}", budget, length, prompt, least)
        for budget in experiment["budgets"]
    ]


def method_options(method: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a method's policy: those of its entry, and defaults."""
    known = methods.method(method["policy"]).options
    return {name: method.get(name, option.default) for name, option in known.items()}


def least_budget(method: Mapping[str, Any]) -> int:
    """Tokens that every head keeps: attention sinks, and as many recent ones as the method says."""
    return max(MINIMUM, SINKS + method_options(method).get("recent", 0))


def _budget(where: str, budget: str | int, length: int, prompt: int, least: int) -> str | int:
    """A budget in its one spelling: an int of tokens or a string such as `12.5%`."""
    if isinstance(budget, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)%", budget)):
        share = float(match[1])
        if not 0 < share <= 100:
            raise UserError(f"{where}: a share must be above 0% and at most 100%")
        tokens = round(share / 100 * prompt)
        budget = f"{share:g}%"
    else:
        if not re.fullmatch(r"\d+", str(budget)):
            raise UserError(f"{where}: give tokens as in 256, or a share as in '20%'")
        budget = tokens = int(budget)
        if tokens >= length:
            raise UserError(
                f"{where}: at length {length} nothing would be evicted; "
                "use a smaller budget or a longer length"
            )
    if tokens < least:
        raise UserError(
            f"{where}: at length {length} that is {tokens} tokens, under the {least} that "
            "attention sinks and recent tokens take; use a larger budget or a longer length"
        )
    return budget


def _check_method(name: str, method: Mapping[str, Any]) -> None:
    known = methods.method(method["policy"])
    own = {key: value for key, value in method.items() if key not in _OF_ANY_METHOD}
    if known.calibrated:
        own.pop("calibration", None)
    given = options.filled(f"methods: {name}", own, known.options)
    if method.get("prefill_chunk") and known.holds_context:
        raise UserError(
            f"methods: {name}: policy {method['policy']!r} needs the whole context before it "
            "evicts; drop prefill_chunk"
        )
    if "bits" in method and known.moves_keys(given):
        option, still = known.stays
        raise UserError(
            f"methods: {name}: bits: keys that move inside the cache cannot be quantised; use "
            f"{option}: {still}"
        )
    if "value_bits" in method and "bits" not in method:
        raise UserError(f"methods: {name}: value_bits needs bits, which says how keys are stored")


def _check_haystack(name: str, task: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    haystack = task.get("haystack", config["haystack"])
    _known(f"tasks: {name}: haystack", haystack, config["haystacks"], "haystacks")
    if (
        tasks.kind(task["kind"]).protocol == "translation"
        and "translation" not in config["haystacks"][haystack]
    ):
        raise UserError(
            f"tasks: {name}: haystack {haystack!r} has no translation; name a parallel text by "
            "the task's key haystack"
        )


def _check_fits(where: str, kind: str, name: str, method: Mapping[str, Any]) -> None:
    """Not every method can do what a kind of task asks of it."""
    if tasks.kind(kind).throughout and methods.method(method["policy"]).holds_context:
        raise UserError(
            f"{where}: method {name!r} needs the whole context before it evicts, and {kind} is "
            "bounded throughout; use another method"
        )
    if tasks.kind(kind).protocol == "translation":
        _check_streaming(where, name, method)


def _check_repetition(
    where: str, config: Mapping[str, Any], model: str, method: str, length: int
) -> None:
    context = config["models"][model].get("context")
    rereads = methods.method(config["methods"][method]["policy"]).rereads
    if rereads and context is not None and length + min(length, rereads) > context:
        raise UserError(
            f"{where}: method {method!r} reads a context of {length} tokens twice, over the "
            f"{context} tokens of model {model!r}; use a shorter length or another model"
        )


def _check_streaming(where: str, name: str, method: Mapping[str, Any]) -> None:
    """Source and target are numbered apart: no method may have positions of its own."""
    known = methods.method(method["policy"])
    given = method_options(method)
    if known.moves_keys(given):
        option, still = known.stays
        raise UserError(
            f"{where}: method {name!r} cannot stream with {option}: {given[option]}; "
            f"use {option}: {still}"
        )


def _check_length(where: str, config: Mapping[str, Any], model: str, length: int) -> None:
    if length < MIN_LENGTH:
        raise UserError(f"{where}: length {length} is too short; use at least {MIN_LENGTH} tokens")
    context = config["models"][model].get("context")
    if context is not None and length > context:
        raise UserError(
            f"{where}: length {length} is over the context of model {model!r} ({context} tokens); "
            "drop the length, restrict it with lengths_by_model, or use another model"
        )


def _cell(
    config: Mapping[str, Any],
    model: str,
    task: str,
    length: int,
    method: str,
    budget: str | int | None,
) -> Cell:
    task_options = dict(config["tasks"][task])
    samples = {**config["samples"], **task_options.pop("samples", {})}
    haystack = task_options.pop("haystack", config["haystack"])
    entry = config["methods"][method]
    spec = {
        "model": model,
        "dtype": config["dtype"],
        "seed": config["seed"],
        "haystack": haystack,
        "task": _named(task, task_options, tasks.options_of(task_options["kind"])),
        "length": length,
        "method": _named(method, entry, methods.method(entry["policy"]).options),
        "budget": budget,
        "samples": samples,
    }
    calibration = None
    if _is_calibrated(spec["method"]):
        spec["calibration"] = _calibration(config, config["methods"][method])
        name = config["methods"][method].get("calibration")
        calibration = (
            f"results/{config['study']}/calibrations/{model}{f'/{name}' if name else ''}.json"
        )
    return Cell(
        model=model,
        task=task,
        length=length,
        method=method,
        budget=budget,
        experiments=(),
        path=f"results/{config['study']}/cells/{model}/{task}/L{length}/{method}/"
        f"B{budget_token(budget)}.json",
        spec=spec,
        calibration=calibration,
    )


def _calibration(config: Mapping[str, Any], method: Mapping[str, Any]) -> dict[str, Any]:
    """Spec of the calibration that a method uses."""
    return {**config["calibration"], **config["calibrations"].get(method.get("calibration"), {})}


def _named(
    name: str, entry: Mapping[str, Any], known: Mapping[str, options.Option]
) -> dict[str, Any]:
    """An entry as specs have it: with its name and all options, so that a change of a default
    changes what is asked for."""
    defaults = {key: option.default for key, option in known.items()}
    given = {key: value for key, value in entry.items() if key not in _NOT_IN_SPECS}
    return {"name": name, **defaults, **given}


def _is_calibrated(method: Mapping[str, Any]) -> bool:
    return methods.method(method["policy"]).calibrated


@functools.cache
def _traced(function: Callable, *modules: str) -> Any:
    """A digest of these modules, or its parts, with the libraries that results depend on."""
    return function(modules, *provenance.library_versions("torch", "transformers"))


def _current(path: Path, spec: dict[str, Any], code: str) -> bool:
    """Whether a record is what the plan wants; an absent one is not stale, just missing."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record["spec"] == spec and record["code"] == code
    except FileNotFoundError:
        return True
    except (ValueError, KeyError, TypeError):
        return False


def _known(where: str, key: str, table: Iterable[str], place: str) -> None:
    if key not in table:
        names = list(table)
        raise UserError(
            f"{where}: there is no {key!r}{suggest(key, names)}; {place} has {', '.join(names)}"
        )


def _with_defaults(value: Any, schema: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        for key, below in properties.items():
            if key not in value and "default" in below:
                value[key] = json.loads(json.dumps(below["default"]))
        others = schema.get("additionalProperties")
        for key, item in value.items():
            below = properties.get(key, others)
            if isinstance(below, Mapping):
                value[key] = _with_defaults(item, below)
    elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        value = [_with_defaults(item, schema["items"]) for item in value]
    return value


def _explain(error: jsonschema.ValidationError) -> str:
    place = ": ".join(_steps(error.absolute_path)) or "the top level"
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = list(error.schema.get("properties", {}))
        unknown = next(key for key in error.instance if key not in known)
        return (
            f"config: unknown key {unknown!r} at {place}"
            f"{suggest(unknown, known)}; it knows {', '.join(known)}"
        )
    if "propertyNames" in error.absolute_schema_path:
        return f"config: {place}: bad name {error.instance!r}; use {error.schema['description']}"
    return f"config: {place}: {error.message}"


def _steps(path: Iterable[str | int]) -> Iterable[str]:
    for step in path:
        yield f"number {step + 1}" if isinstance(step, int) else step


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the expanded plan of a study.")
    parser.add_argument("--config", required=True, help="the validated configuration as JSON")
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    study = expand(json.loads(args.config))
    for digest, parts in study.codes().items():
        _write(args.out.parent / "code" / f"{digest}.json", parts)
    _write(args.out, study.plan())


def _write(out: Path, content: Any) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(out)


if __name__ == "__main__":
    run_cli(main)
