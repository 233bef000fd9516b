"""A study: from the configuration to the list of cells to compute. Imports no torch.

The Snakefile, the command line and the analysis use the same functions, so what is planned,
computed and reported cannot drift apart.
"""

import functools
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kvbudget import options
from kvbudget.calibration.options import OPTIONS as CALIBRATION
from kvbudget.errors import UserError
from kvbudget.options import Option
from kvbudget.policies import registry as methods
from kvbudget.run.protocols import PROTOCOLS
from kvbudget.sources import registry, text
from kvbudget.study import checks, identity, provenance, published, titles
from kvbudget.study.plan import DEFAULT, DEFAULT_COMMAND, SEEDED, Calibration, Planned, Study
from kvbudget.tasks import registry as tasks

#: Keys of an entry that its cells' specs do without: what is only printed, and which calibration is
#: used, whose content they have.
_NOT_IN_SPECS = frozenset({"title", "calibration", checks.SEEDS})
#: What a calibration is computed by.
_CALIBRATING = ("kvbudget.run.calibrate",)


def expand(
    config: Mapping[str, Any], root: Path = Path(), command: Iterable[str] = DEFAULT_COMMAND
) -> Study:
    """Expand a checked configuration into cells; shared cells appear once.

    In a published study (`kvbudget.study.published`) published results take the place of its own.

    Args:
        config: as `kvbudget.study.config.validate` returns it.
        root: directory in which results/ and the user's own texts are.
        command: that runs the study.

    Raises:
        UserError: naming what cannot be computed and what to change.
    """
    _check(config)
    made = _Expansion(config, root)
    cells: dict[str, Planned] = {}
    for experiment in config["experiments"]:
        for cell in made.cells(experiment):
            before = cells[cell.path].experiments if cell.path in cells else ()
            cells[cell.path] = Planned(
                **{**vars(cell), "experiments": (*before, experiment["name"])}
            )
    planned = Study(
        config["study"],
        dict(config),
        tuple(cells.values()),
        tuple(made.calibrations.values()),
        root,
        tuple(command),
    )
    return published.resolved(planned)


def code_parts(study: Study) -> dict[str, dict[str, str]]:
    """By digest of code: the digests of its modules and the versions of its libraries."""
    entries = dict.fromkeys(entry_modules(cell.spec) for cell in study.cells)
    parts = {_code(*modules): _parts(*modules) for modules in entries}
    return parts | ({_code(*_CALIBRATING): _parts(*_CALIBRATING)} if study.calibrations else {})


def code_of(result: Planned | Calibration) -> str:
    """Digest of the code that would measure a cell or a calibration today."""
    return _code(*(_CALIBRATING if isinstance(result, Calibration) else entry_modules(result.spec)))


def entry_modules(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """What a cell runs: the mechanism, its policy, its task and how that reads contexts."""
    policy, kind = spec["method"]["policy"], spec["task"]["kind"]
    if methods.method(policy).elsewhere:
        return ("kvbudget.run.peers.cell", tasks.module_of(kind))
    protocol = PROTOCOLS[tasks.kind(kind).protocol]
    return ("kvbudget.run.cell", methods.module_of(policy), tasks.module_of(kind), protocol)


def _check(config: Mapping[str, Any]) -> None:
    """Everything that does not depend on an experiment."""
    checks.check_name(config["study"])
    for key, spec in config["models"].items():
        registry.parse(key, spec)
    checks.known("haystack", config["haystack"], config["haystacks"], "haystacks")
    for key, spec in config["haystacks"].items():
        text.check(key, spec)
    checks.check_calibration("calibration", config["calibration"], config)
    for name, entry in config["calibrations"].items():
        checks.check_calibration(f"calibrations: {name}", entry, config)
    for name, method in config["methods"].items():
        checks.check_method(name, method, config["calibrations"])
    for name, task in config["tasks"].items():
        checks.check_task(name, task, config)
    for table in ("models", "tasks", "methods"):
        checks.check_titles(table, config[table])
    for experiment in config["experiments"]:
        title = experiment.get("title", experiment["name"])
        titles.check(f"experiments: {experiment['name']}: title", title)
    names = [experiment["name"] for experiment in config["experiments"]]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"experiments: two are named {name!r}; give one another name")


class _Expansion:
    """One configuration on its way to cells."""

    def __init__(self, config: Mapping[str, Any], root: Path) -> None:
        self.config, self.root = config, root
        self.calibrations: dict[tuple[str, str, int | None], Calibration] = {}

    def cells(self, experiment: Mapping[str, Any]) -> Iterable[Planned]:
        """The cells of an experiment, in order, with no experiment noted yet."""
        checks.check_experiment(experiment, self.config)
        where = f"experiments: {experiment['name']}"
        own_lengths = experiment.get("lengths_by_model", {})
        for model in experiment["models"]:
            for task in experiment["tasks"]:
                for length in own_lengths.get(model, experiment["lengths"]):
                    for method in experiment["methods"]:
                        budgets = self._budgets(where, experiment, task, method, length)
                        seeds = self.config["methods"][method].get(checks.SEEDS, [None])
                        for budget, seed in itertools.product(budgets, seeds):
                            yield self._cell(model, task, length, method, budget, seed)

    def _budgets(
        self, where: str, experiment: Mapping[str, Any], task: str, method: str, length: int
    ) -> list[str | int | None]:
        entry = self.config["methods"][method]
        if entry["policy"] == "full":
            return [None]
        if not experiment["budgets"]:
            raise UserError(f"{where}: budgets is empty, but method {method!r} needs one")
        kind = tasks.kind(self.config["tasks"][task]["kind"])
        prompt = round(kind.prompt_share * length)
        least = checks.least_budget(entry)
        return [
            checks.budget_of(
                f"{where}: method {method!r}: budget {budget!r}", budget, length, prompt, least
            )
            for budget in experiment["budgets"]
        ]

    def _cell(
        self,
        model: str,
        task: str,
        length: int,
        method: str,
        budget: str | int | None,
        seed: int | None,
    ) -> Planned:
        """One cell; `seed` is that of its calibration where the method names several."""
        config = self.config
        entry, task_entry = config["methods"][method], dict(config["tasks"][task])
        samples = {**config["samples"], **task_entry.pop("samples", {})}
        haystack = task_entry.pop("haystack", config["haystack"])
        policy = methods.method(entry["policy"])
        spec = {
            "model": model,
            "dtype": config["dtype"],
            "seed": config["seed"],
            "split": config["split"],
            "haystack": haystack,
            "task": _named(task, task_entry, tasks.options_of(task_entry["kind"])),
            "length": length,
            "method": {
                **_named(method, entry, policy.options),
                "bounded": checks.bounded_of(entry, task_entry["kind"]),
            },
            "budget": budget,
            "samples": samples,
        }
        calibration = None
        if policy.calibrated:
            calibration = self._calibration(model, entry.get("calibration", DEFAULT), seed)
            checks.check_map(method, policy.hidden_map(spec["method"]), calibration.spec)
            spec["calibration"] = calibration.spec
        code = _code(*entry_modules(spec))
        parts = {
            "spec": spec,
            "code": code,
            "model": self._model(model),
            "text": self._text(haystack),
            "calibration": calibration and calibration.identity,
            "facts": [*policy.facts, *tasks.kind(task_entry["kind"]).facts],
        }
        return Planned(
            spec,
            code,
            identity.digest(parts),
            self._text_path(haystack),
            calibration and calibration.path,
            experiments=(),
        )

    def _calibration(self, model: str, name: str, seed: int | None) -> Calibration:
        changes = {**self.config["calibration"], **self.config["calibrations"].get(name, {})}
        haystack = changes.pop("haystack", self.config["haystack"])
        if seed == changes.get("seed", CALIBRATION["seed"].default):
            seed = None
        key = (model, name, seed)
        if key not in self.calibrations:
            if seed is not None:
                changes, name = {**changes, "seed": seed}, f"{name}{SEEDED}{seed}"
            spec = options.filled("calibration", changes, CALIBRATION)
            spec = {"haystack": haystack, **spec}
            checks.check_length("calibration", self.config, model, spec["length"])
            for length in spec["scorer_lengths"]:
                rereads = methods.method("kvzip").rereads  # by which its target is measured
                reader = "calibration: scorer_lengths"
                checks.check_repetition(reader, self.config, model, length, rereads)
            code = _code(*_CALIBRATING)
            parts = {
                "spec": spec,
                "code": code,
                "model": self._model(model),
                "text": self._text(haystack),
            }
            self.calibrations[key] = Calibration(
                model, name, spec, code, identity.digest(parts), self._text_path(haystack)
            )
        return self.calibrations[key]

    @functools.cache  # noqa: B019 lives as long as one expansion
    def _model(self, key: str) -> str:
        return identity.model_identity(key, self.config["models"][key], self.root)

    @functools.cache  # noqa: B019
    def _text(self, key: str) -> str:
        return identity.text_identity(key, self.config["haystacks"][key], self.root)

    def _text_path(self, key: str) -> str:
        return f"results/text/{key}-{self._text(key)[: identity.DIGITS]}.txt"


def _named(name: str, entry: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """An entry as specs have it: with its name and all options, so that a change of a default
    changes what is asked for."""
    defaults = {key: option.default for key, option in known.items()}
    given = {key: value for key, value in entry.items() if key not in _NOT_IN_SPECS}
    return {"name": name, **defaults, **given}


@functools.cache
def _code(*modules: str) -> str:
    """Digest of these modules, with the libraries that results depend on."""
    return provenance.code_digest(modules, *_libraries())


def _parts(*modules: str) -> dict[str, str]:
    return provenance.code_parts(modules, *_libraries())


@functools.cache
def _libraries() -> tuple[str, ...]:
    return tuple(provenance.library_versions("torch", "transformers"))
