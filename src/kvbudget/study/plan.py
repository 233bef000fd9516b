"""The plan of a study as plain data: what to measure, and where each result lies."""

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from kvbudget.errors import UserError
from kvbudget.study.identity import DIGITS, digest
from kvbudget.tasks import registry as tasks

FULL = "full"
OURS = "head-aware"
#: Name of the calibration that a method uses unless it asks for another.
DEFAULT = "default"
#: What stands before another seed than its own in the name of a calibration.
SEEDED = "-seed-"
AXES = ("model", "task", "length", "method", "budget")
#: Where results lie that are measured here.
STORE = "results"
#: How Snakemake is started for the default study.
DEFAULT_COMMAND = ("snakemake", "--cores", "1", "--resources", "gpu=1")


def budget_token(budget: str | int | None) -> str:
    """A budget as it stands in paths and CSV files: `20p` for 20%, `256` for tokens, `full`."""
    return FULL if budget is None else str(budget).replace("%", "p")


class _Result:
    """What a cell and a calibration have in common; they have `store`, `model`, `text`, `code`,
    `identity`."""

    @property
    def published(self) -> bool:
        """Whether it comes from the archive of a published study, and is never measured here."""
        return self.store != STORE

    @property
    def verified(self) -> str:
        """Path of what the check of its model has found."""
        return f"{self.store}/models/{self.model}.verified.json"

    @property
    def verified_text(self) -> str:
        """Path of what its text was when it was made."""
        return f"{self.text.removesuffix('.txt')}.verified.json"

    @property
    def code_file(self) -> str:
        """Path of what its digest of code stands for."""
        return f"{self.store}/code/{self.code}.json"

    @property
    def attested(self) -> str:
        """Path of what is noted of each time that it was computed again and came out the same."""
        return f"{self.store}/attested/{self.identity}.json"


@dataclass(frozen=True)
class Calibration(_Result):
    """A calibration that some cell needs.

    Attributes:
        model: key of the model.
        name: its entry of `calibrations`, or `DEFAULT`; with another seed, `default-seed-2`.
        spec: what it is made from.
        code: digest of the code that makes it.
        identity: of spec, code, model and text; part of the path.
        text: path of the haystack that its prompts are made of.
        store: folder that it lies in.
    """

    model: str
    name: str
    spec: dict[str, Any]
    code: str
    identity: str
    text: str
    store: str = STORE

    @property
    def own(self) -> bool:
        """Whether it is the plan's own, with whatever seed, and not one of `calibrations`."""
        return self.name.split(SEEDED)[0] == DEFAULT

    @property
    def path(self) -> str:
        return f"{self.store}/calibrations/{self.model}/{self.name}-{self.identity[:DIGITS]}.json"


@dataclass(frozen=True)
class Planned(_Result):
    """One cell of the plan, and the one file that it writes.

    Attributes:
        spec: all that is asked for, every option included.
        code: digest of the code that the cell runs.
        identity: of spec, code, model, text and calibration; part of the path.
        text: path of the haystack that its samples are made of.
        calibration: path of the calibration that it needs; None if it needs none.
        experiments: names of those that it belongs to.
        store: folder that it lies in.
    """

    spec: dict[str, Any]
    code: str
    identity: str
    text: str
    calibration: str | None
    experiments: tuple[str, ...]
    store: str = STORE

    @property
    def path(self) -> str:
        place = f"{self.model}/{self.task}/L{self.length}/{self.method}"
        return f"{self.store}/cells/{place}/B{self.budget}-{self.identity[:DIGITS]}.json"

    @property
    def key(self) -> tuple[str, str, int, str, str]:
        """(model, task, length, method, budget)."""
        return (self.model, self.task, self.length, self.method, self.budget)

    @property
    def axes(self) -> dict[str, str | int]:
        """The key by the names of its parts."""
        return dict(zip(AXES, self.key, strict=True))

    @property
    def model(self) -> str:
        return self.spec["model"]

    @property
    def task(self) -> str:
        return self.spec["task"]["name"]

    @property
    def kind(self) -> str:
        return self.spec["task"]["kind"]

    @property
    def length(self) -> int:
        return self.spec["length"]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt; perplexity reads half of its text as the prompt."""
        return round(tasks.kind(self.kind).prompt_share * self.length)

    @property
    def method(self) -> str:
        return self.spec["method"]["name"]

    @property
    def policy(self) -> str:
        return self.spec["method"]["policy"]

    @property
    def budget(self) -> str:
        return budget_token(self.spec["budget"])


@dataclass(frozen=True)
class Study:
    """A study as planned.

    Attributes:
        name: its results lie in results/{name}/.
        config: all of its configuration, checked and with every default.
        cells: in the order of the experiments, each once.
        calibrations: that some cell needs.
        root: directory that all paths start from.
        command: that runs the study, as a list of words.
        left_out: planned cells that are not among `cells`, as they are not published, or little of
            their experiments is.
    """

    name: str
    config: dict[str, Any]
    cells: tuple[Planned, ...] = field(repr=False)
    calibrations: tuple[Calibration, ...] = field(default=(), repr=False)
    root: Path = Path()
    command: tuple[str, ...] = DEFAULT_COMMAND
    left_out: int = 0

    @property
    def directory(self) -> str:
        return f"results/{self.name}"

    @cached_property
    def identity(self) -> str:
        """Digest of all that is planned, titles included."""
        cells = [[each.store, each.identity, *each.experiments] for each in self.cells]
        calibrations = [[each.store, each.identity] for each in self.calibrations]
        return digest([self.config, cells, calibrations, self.left_out])

    @property
    def results(self) -> tuple[Planned | Calibration, ...]:
        """All cells and calibrations."""
        return (*self.cells, *self.calibrations)

    @property
    def models(self) -> list[str]:
        """Keys of the models that some cell uses, in order of appearance."""
        return list(dict.fromkeys(cell.model for cell in self.cells))

    @property
    def texts(self) -> list[str]:
        """Paths of the texts that some cell or calibration uses."""
        return list(dict.fromkeys(each.text for each in self.results))

    @property
    def published(self) -> bool:
        """Whether all of it comes from an archive, so that nothing is left to measure."""
        return bool(self.cells) and all(each.published for each in self.results)

    @property
    def experiments(self) -> list[dict[str, Any]]:
        """Those of the configuration that have a cell; one that is not published has none."""
        named = {name for cell in self.cells for name in cell.experiments}
        return [each for each in self.config["experiments"] if each["name"] in named]

    def missing(self) -> list[Planned]:
        """Cells without a record. What lies there is whole: records are written in one step."""
        return [cell for cell in self.cells if not (self.root / cell.path).exists()]

    def run(self, paths: Iterable[str]) -> str:
        """The command that makes these files, for a shell."""
        return shlex.join([*self.command, "--", *paths])

    def title(self, section: str, key: str) -> str:
        """Name in print of a model, task or method; the key itself without a `title`."""
        return str(self.config.get(section, {}).get(key, {}).get("title") or key)

    @cached_property
    def methods(self) -> list[str]:
        """Methods that the plan measures, in the order in which the experiments name them."""
        named = dict.fromkeys(name for e in self.experiments for name in e["methods"])
        used = {cell.method for cell in self.cells}
        return [name for name in named if name in used]

    def policy(self, method: str) -> str:
        return self.config["methods"][method]["policy"]

    @cached_property
    def ours(self) -> str | None:
        """The method whose claims are tested: `head-aware`, or the first with that policy."""
        own = [m for m in self.methods if self.policy(m) == OURS]
        return OURS if OURS in own else next(iter(own), None)

    @cached_property
    def main_methods(self) -> list[str]:
        """The first full cache, every method of others, and ours; not its variants."""
        full = next((m for m in self.methods if self.policy(m) == FULL), None)
        return [
            m for m in self.methods if m in (full, self.ours) or self.policy(m) not in (FULL, OURS)
        ]

    @cached_property
    def baselines(self) -> list[str]:
        """Main methods that evict and are not ours."""
        return [m for m in self.main_methods if self.policy(m) not in (FULL, OURS)]

    @property
    def seed(self) -> int:
        return int(self.config.get("seed", 0))

    def as_json(self) -> dict[str, Any]:
        """What `load_study` reads."""
        return {
            "study": self.name,
            "command": list(self.command),
            "config": self.config,
            "cells": [{"path": cell.path, **vars(cell)} for cell in self.cells],
            "calibrations": [{"path": each.path, **vars(each)} for each in self.calibrations],
            "left_out": self.left_out,
        }


def load_study(path: Path) -> Study:
    """Read a plan as `kvbudget expand` wrote it, in results/{study}/.

    Raises:
        UserError: the file is absent, is not JSON, or lacks a key.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Study(
            raw["study"],
            raw["config"],
            tuple(made(Planned, cell) for cell in raw["cells"]),
            tuple(made(Calibration, each) for each in raw["calibrations"]),
            path.parents[2],
            tuple(raw["command"]),
            raw["left_out"],
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"cannot read the plan {path} ({error!r}); make it with `snakemake --cores 1 {path}`"
        ) from error


def made(cls: type, raw: dict[str, Any]) -> Any:
    """A dataclass from what `as_json` wrote; lists were tuples."""
    values = {each.name: raw[each.name] for each in fields(cls)}
    return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
