"""Times of two machines never stand in one ratio."""

from collections import Counter, defaultdict
from dataclasses import replace

from kvbudget.study.records import Cell

#: What of a record's provenance names the machine.
MACHINE = ("device", "cpu", "threads")


def timed_alike(cells: list[Cell]) -> list[Cell]:
    """The cells, in order; of each model only those have times that the machine measured which
    measured most of them. Others keep all that does not depend on a machine's speed."""
    of_model = defaultdict(Counter)
    for cell in cells:
        of_model[cell.planned.model][machine_of(cell)] += 1
    usual = {model: machines.most_common(1)[0][0] for model, machines in of_model.items()}
    return [
        cell if machine_of(cell) == usual[cell.planned.model] else _without_times(cell)
        for cell in cells
    ]


def machine_of(cell: Cell) -> tuple[str, ...]:
    """The machine that measured a cell."""
    return tuple(str(cell.record["provenance"].get(name)) for name in MACHINE)


def _without_times(cell: Cell) -> Cell:
    return replace(cell, record=cell.record | {"timing": {}})
