"""Which context of a study is shown token by token, under which methods, and where that lies.

It is no result: it is made from the same model, text and methods as the cells, by a command of its
own, and no cell depends on it.
"""

from collections import Counter
from dataclasses import dataclass

from kvbudget.study import provenance
from kvbudget.study.identity import DIGITS, digest
from kvbudget.study.plan import FULL, Planned, Study
from kvbudget.tasks import registry as tasks

_MAKING = ("kvbudget.run.shade",)


@dataclass(frozen=True)
class Shade:
    """The first context of a place, read by each of its methods at one budget.

    Attributes:
        cells: of one model, task, length and budget, a method each.
        path: of the file.
    """

    cells: tuple[Planned, ...]
    path: str


def of_study(study: Study) -> Shade | None:
    """The study's first model at its shortest prompt, of a task with questions if there is one, at
    the budget that most methods are measured at; None where no method reads a whole prompt, or the
    study is published: its models are not here."""
    models = study.models
    evicting = [
        cell
        for cell in study.cells
        if not cell.published
        and cell.policy != FULL
        and tasks.kind(cell.kind).protocol == "questions"
    ]
    if not evicting:
        return None

    def rank(cell: Planned) -> tuple:
        return tasks.kind(cell.kind).throughout, models.index(cell.model), cell.length

    first = min(evicting, key=rank)
    here = [cell for cell in evicting if cell.key[:3] == first.key[:3]]
    methods = Counter(budget for _, budget in {(each.method, each.budget): None for each in here})
    (budget, _) = methods.most_common(1)[0]
    shown = {cell.method: cell for cell in reversed(here) if cell.budget == budget}
    cells = tuple(shown[method] for method in study.methods if method in shown)
    code = provenance.code_digest(_MAKING)
    name = digest([code, *(cell.identity for cell in cells)])[:DIGITS]
    return Shade(cells, f"{study.directory}/shade-{name}.json")
