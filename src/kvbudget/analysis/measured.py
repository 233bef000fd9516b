"""What was measured of a method at one place: one cell, or one for each seed of its calibration.

Cells that differ in nothing but that seed count as one: each context has the mean over seeds, and
how far the seeds lie apart is told beside it.
"""

import statistics
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from kvbudget.analysis.metrics import METRICS, chance
from kvbudget.study.plan import FULL, Planned
from kvbudget.study.records import Cell

#: Tokens by which the kept tokens of a head, a mean over contexts, may miss the context's.
ROUNDING = 0.05
#: Bits that an unquantised number counts.
UNQUANTISED = 16


@dataclass(frozen=True)
class Measured:
    """Cells of one (model, task, length, method, budget), in the order of the plan."""

    cells: tuple[Cell, ...]

    @property
    def planned(self) -> Planned:
        """The plan of the first; what it names is alike in all."""
        return self.cells[0].planned

    @property
    def full(self) -> bool:
        return self.planned.policy == FULL

    @property
    def chance(self) -> float | None:
        """Chance level of score and forced choice."""
        return chance(self.cells[0].samples)

    @property
    def bits(self) -> str:
        """Bits of a stored number: `16`, `4`, or `4/2` for keys and values that differ."""
        method = self.planned.spec["method"]
        keys = method.get("bits") or UNQUANTISED
        values = method.get("value_bits") or keys
        return str(keys) if keys == values else f"{keys}/{values}"

    @property
    def kept(self) -> float:
        """Share of the context's tokens that a KV head keeps, in the mean."""
        if self.full:
            return 1.0
        shares = [np.mean(_slots(cell)) / _context_tokens(cell) for cell in self.cells]
        return min(1.0, float(np.mean(shares)))

    @property
    def all_kept(self) -> bool:
        """Whether nothing was evicted, whatever the budget is called."""
        return not self.full and all(
            min(_slots(cell)) > _context_tokens(cell) - ROUNDING for cell in self.cells
        )

    @property
    def machine(self) -> str:
        """Where it was timed: device, CPU and threads; several are joined and equal no other."""
        places = (cell.record["provenance"] for cell in self.cells)
        return "; ".join(sorted({_place(each) for each in places}))

    def by_context(self, metric: str) -> dict[str, float]:
        """Mean over seeds of the mean over questions, of each context that has any."""
        found: dict[str, list[float]] = defaultdict(list)
        for cell in self.cells:
            for context, value in _by_context(cell, metric).items():
                found[context].append(value)
        return {context: statistics.fmean(values) for context, values in found.items()}

    def of_seeds(self, metric: str) -> list[dict[str, float]]:
        """The same of each seed; empty where there is one."""
        return [_by_context(cell, metric) for cell in self.cells] if len(self.cells) > 1 else []

    def cost(self, group: str, name: str) -> float | None:
        """A number of `memory` or `timing`, mean over seeds; None where a record has none."""
        values = [cell.record[group].get(name) for cell in self.cells]
        return None if None in values else float(np.mean(values))


def measured(cells: list[Cell]) -> list[Measured]:
    """Cells grouped by what they measure."""
    groups: dict[tuple, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.planned.key].append(cell)
    return [Measured(tuple(group)) for group in groups.values()]


def by_place(groups: list[Measured], experiment: str) -> dict[tuple, dict[tuple, Measured]]:
    """What an experiment sets side by side: (method, budget) by (model, task, length)."""
    places: dict[tuple, dict[tuple, Measured]] = defaultdict(dict)
    for each in groups:
        if experiment in each.planned.experiments:
            *place, method, budget = each.planned.key
            places[tuple(place)][method, budget] = each
    return places


def _by_context(cell: Cell, metric: str) -> dict[str, float]:
    groups: dict[str, list[float]] = defaultdict(list)
    for sample in cell.samples:
        if (value := METRICS[metric].of(sample)) is not None:
            groups[sample["context_id"]].append(float(value))
    return {context: statistics.fmean(values) for context, values in groups.items()}


def _slots(cell: Cell) -> list[float]:
    """Tokens that each KV head keeps of the context, mean over contexts."""
    return [slots for heads in cell.record["allocation"]["slots"] for slots in heads]


def _context_tokens(cell: Cell) -> float:
    """Tokens of what was compressed, mean over contexts: the prompt without its question."""
    memory = cell.record["memory"]
    budget = statistics.fmean(sample["budget_tokens"] for sample in cell.samples)
    return budget * memory["cache_bytes_full"] / memory["cache_bytes_planned"]


def _place(provenance: dict) -> str:
    """What a record was timed on, in words."""
    threads = provenance["threads"]
    count = f"{threads} thread{'s' if threads != 1 else ''}"
    return ", ".join(filter(None, (provenance["device"], provenance.get("cpu"), count)))
