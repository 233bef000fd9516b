"""The plan of a study and the records its cells left, as plain data."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from kvbudget.errors import UserError

SCHEMA = 1
FULL = "full"
OURS = "head-aware"


def budget_token(budget: str | int | None) -> str:
    """A budget as it stands in paths and CSV files: `20p`, `256` or `full`."""
    return FULL if budget is None else str(budget).replace("%", "p")


AXES = ("model", "task", "length", "method", "budget")


@dataclass(frozen=True)
class Planned:
    """One cell of the plan."""

    path: str
    spec: dict
    code: str
    experiments: tuple[str, ...]

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
        return self.length // 2 if self.kind == "perplexity" else self.length

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
    """A study as planned: its config and its cells. `file` is where study.json lies."""

    file: Path
    name: str
    config: dict
    cells: tuple[Planned, ...] = field(repr=False)

    def record_file(self, cell: Planned) -> Path:
        """Where the record lies: below study.json's folder, whatever the working directory."""
        return self.file.parent / cell.path[cell.path.index("cells/") :]

    def command(self, paths: list[str], force: bool = False) -> str:
        """The command that measures these cells (again)."""
        parts = ["snakemake"]
        if self.name != "default":
            parts.append(f"--configfile workflow/studies/{self.name}.yaml")
        if force:
            parts += ["--forcerun", *paths]
        # Last, an option with one value: those above would take a path that follows for theirs.
        return " ".join([*parts, "--cores 1", *paths])

    @property
    def experiments(self) -> list[dict]:
        return self.config["experiments"]

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


def load_study(path: Path) -> Study:
    """Read study.json.

    Raises:
        UserError: the file is absent, is not JSON, or lacks a key.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        cells = tuple(
            Planned(c["path"], c["spec"], c["code"], tuple(c["experiments"])) for c in raw["cells"]
        )
        return Study(path, raw["study"], raw["config"], cells)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot read the plan {path} ({error!r}); make it with `snakemake --cores 1 {path}`"
        ) from error


@dataclass(frozen=True)
class Cell:
    """A planned cell with the record it left."""

    planned: Planned
    record: dict = field(repr=False)

    @property
    def samples(self) -> list[dict]:
        return self.record["samples"]

    def by_context(self, metric: str) -> dict[str, float]:
        """Mean of a metric over the questions of each context, in the record's order."""
        groups: dict[str, list[float]] = {}
        for sample in self.samples:
            if sample[metric] is not None:
                groups.setdefault(sample["context_id"], []).append(float(sample[metric]))
        return {context: sum(values) / len(values) for context, values in groups.items()}
