"""Which contexts of a study are read once for all methods of a place, and where it pays.

A place is a model, a task and a length, with all else that its contexts depend on. Its recorded
contexts are no result: they lie there from the first cell that adopts them to the last.
"""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kvbudget.policies import registry as methods
from kvbudget.study import identity, provenance
from kvbudget.study.plan import Planned, Study
from kvbudget.tasks import registry as tasks

STORE = "results/prefills"
#: What a cell adds to its place.
_OF_CELLS = frozenset({"method", "budget", "calibration"})
#: To record a context takes so many times as long as to read it, by all signals and with writing.
RECORDING = 1.5


@dataclass(frozen=True)
class Prefills:
    """The contexts of a place, and who can adopt them.

    Attributes:
        spec: all that they depend on, and the `signals` that are recorded.
        identity: of spec, code, model and text; part of the path.
        text: path of the haystack that they are made of.
        cells: paths of the cells that can adopt them.
    """

    spec: dict[str, Any]
    identity: str
    text: str
    cells: frozenset[str]

    @property
    def path(self) -> str:
        place = f"{self.spec['model']}/{self.spec['task']['name']}/L{self.spec['length']}"
        return f"{STORE}/{place}/{self.identity[: identity.DIGITS]}"

    @property
    def contexts(self) -> int:
        return self.spec["samples"]["contexts"]

    def pay(self, cells: int, own: int) -> bool:
        """Whether to record them saves time, if so many cells read but their first `own`."""
        return cells > 1 and cells * (self.contexts - own) > RECORDING * self.contexts


def can_adopt(cell: Planned) -> bool:
    """Whether a cell reads the whole of a context before it evicts any of it."""
    whole = cell.spec["task"].get("chunk") is None
    whole &= cell.spec["method"].get("prefill_chunk") is None
    policy = methods.method(cell.policy)
    # What is recorded are keys and values, not what they were projected from.
    whole &= not policy.elsewhere and policy.hidden_map(cell.spec["method"]) is None
    return whole and not tasks.kind(cell.kind).throughout


def of_study(study: Study) -> list[Prefills]:
    """The contexts of all places of a study that cells can adopt.

    Signals are those of all methods of the place, done or not: what an interrupted run has recorded
    is still right for the next.
    """
    places: dict[str, list[Planned]] = {}
    for cell in study.cells:
        if can_adopt(cell):
            places.setdefault(identity.canonical(_place(cell.spec)), []).append(cell)
    return [_prefills(study, cells) for cells in places.values()]


def worthwhile(study: Study, cells: Collection[str]) -> list[Prefills]:
    """Those that save time if the cells of these paths are measured on one machine."""
    sharing = study.config["prefills"]
    if sharing["share"] == "never":
        return []
    own = sharing["own_contexts"]
    return [each for each in of_study(study) if each.pay(len(each.cells.intersection(cells)), own)]


def _place(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key not in _OF_CELLS}


def _prefills(study: Study, cells: list[Planned]) -> Prefills:
    spec = _place(cells[0].spec)
    spec["signals"] = sorted({name for cell in cells for name in _signals(cell)})
    model, kind = spec["model"], spec["task"]["kind"]
    parts = {
        "spec": spec,
        "code": _code(kind, *spec["signals"]),
        "model": identity.model_identity(model, study.config["models"][model], study.root),
        "text": cells[0].text,
        "device": study.config["device"],
        "facts": tasks.kind(kind).facts,
    }
    paths = frozenset(cell.path for cell in cells)
    return Prefills(spec, identity.digest(parts), cells[0].text, paths)


def _signals(cell: Planned) -> tuple[str, ...]:
    return methods.method(cell.policy).signals(cell.spec["method"])


@functools.cache
def _code(kind: str, *signals: str) -> str:
    modules = {methods.located(name)[0] for name in signals}
    return provenance.code_digest(
        ["kvbudget.run.prefill", tasks.module_of(kind), *modules],
        *provenance.library_versions("torch", "transformers"),
    )
