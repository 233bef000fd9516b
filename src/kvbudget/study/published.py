"""A published study: the planned cells whose records lie in an archive of the repository.

A record is looked for by what was asked for, and not by the code that answered: a name in results/
holds the digest of the code, so a change of code orphans the records there. Whether today's code
would give the same is another question (`kvbudget.study.standing`).

Records are unpacked into a folder of their own. What is measured here never lies there, so a study
that is measured anew and one that is published are not mixed unless that is asked for.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from kvbudget.calibration.options import OPTIONS as CALIBRATION
from kvbudget.errors import UserError
from kvbudget.options import Option
from kvbudget.policies import registry as methods
from kvbudget.study import bundle, identity
from kvbudget.study.plan import STORE, Calibration, Planned, Study
from kvbudget.tasks import registry as tasks

FOLDER = "results/published"
_SUFFIX = ".tar.xz"
#: What a study takes where it is published: those records alone, those and what else is planned,
#: or none of them.
MODES = ONLY, EXTEND, IGNORE = "only", "extend", "ignore"

_Result = TypeVar("_Result", Planned, Calibration)


def archive_of(study: str) -> str:
    """Where the archive of a published study lies."""
    return f"{FOLDER}/{study}{_SUFFIX}"


def store_of(study: str) -> str:
    """The folder that it is unpacked into."""
    return f"{FOLDER}/{study}"


def names(root: Path) -> list[str]:
    """The studies that are published under a root."""
    found = (root / FOLDER).glob(f"*{_SUFFIX}")
    return sorted(path.name.removesuffix(_SUFFIX) for path in found)


def resolved(study: Study) -> Study:
    """A study as planned for today's code, with published results in place of its own where its
    configuration asks for that (`published`) and there are any.

    Raises:
        UserError: no cell of it is published, or its archive cannot be read.
    """
    archive = _archive(study)
    mode = study.config["published"]
    if mode == IGNORE or not archive.exists():
        return study
    found = _Resolution(study, bundle.read(archive), only=mode == ONLY)
    cells = tuple(filter(None, map(found.cell, study.cells)))
    if mode == ONLY:
        cells = tuple(_told(cells, study.cells))
    if not cells:
        raise UserError(
            f"none of the {len(study.cells)} cells of study {study.name} is published in {archive};"
            f" `published: {IGNORE}` (make: PUBLISHED={IGNORE}) measures them"
        )
    return replace(
        study,
        cells=cells,
        calibrations=found.calibrations(cells),
        left_out=len(study.cells) - len(cells),
    )


def _told(cells: tuple[Planned, ...], planned: tuple[Planned, ...]) -> Iterator[Planned]:
    """Published cells of an experiment's places that most is published of: a table of dashes tells
    nothing."""
    all_of = Counter(part for cell in planned for part in _parts(cell))
    there = Counter(part for cell in cells for part in _parts(cell))
    for cell in cells:
        if own := tuple(part[0] for part in _parts(cell) if 2 * there[part] >= all_of[part]):
            yield replace(cell, experiments=own)


def _parts(cell: Planned) -> Iterator[tuple[str, str, str, int]]:
    """Its experiments, each with the place in it: model, task and length."""
    return ((name, cell.model, cell.task, cell.length) for name in cell.experiments)


def outdated(study: Study) -> list[str]:
    """Paths of the unpacked files that are not there, or are older than the archive; none where the
    study takes nothing of one."""
    if not any(each.published for each in study.results):
        return []
    store = store_of(study.name)
    return [f"{store}/{name}" for name in _outdated(_archive(study))]


def unpack(study: Study) -> None:
    """Unpack what is outdated, if the study takes it.

    Raises:
        UserError: the archive is altered.
    """
    if any(each.published for each in study.results):
        unpack_beside(_archive(study))


def unpack_beside(archive: Path) -> None:
    """Unpack an archive into the folder beside it; a file there that is newer is let be.

    Raises:
        UserError: the archive is altered.
    """
    if names := _outdated(archive):
        for name, content in bundle.contents(archive, names).items():
            bundle.write(_beside(archive) / name, content)


def _outdated(archive: Path) -> list[str]:
    store, since = _beside(archive), archive.stat().st_mtime_ns
    return [
        name
        for name in sorted(bundle.read(archive).files)
        if not (store / name).exists() or (store / name).stat().st_mtime_ns < since
    ]


def _archive(study: Study) -> Path:
    return study.root / archive_of(study.name)


def _beside(archive: Path) -> Path:
    return archive.with_name(archive.name.removesuffix(_SUFFIX))


class _Resolution:
    """A plan beside the manifest of an archive."""

    def __init__(self, study: Study, manifest: bundle.Manifest, *, only: bool) -> None:
        self.study, self.only = study, only
        self.store = store_of(study.name)
        known = {
            key
            for key, found in manifest.models.items()
            if key in study.models
            and found == identity.model_identity(key, study.config["models"][key], study.root)
        }
        self.by_key: dict[tuple, list[Planned]] = {}
        for each in manifest.cells:
            if each.model in known:
                self.by_key.setdefault(each.key, []).append(self._stored(each))
        self.own = [self._stored(each) for each in manifest.calibrations if each.model in known]
        planned = (self._at_hand(each) for each in study.calibrations)
        self.known = {each.path: each for each in (*self.own, *planned)}

    def cell(self, planned: Planned) -> Planned | None:
        """Where the result of a planned cell is, or is to be; None if it is left out."""
        found = self._published(planned)
        if found is None:
            return None if self.only else self._with_calibration(planned)
        measured_anew = found.identity != planned.identity and self._there(planned)
        if measured_anew and not self.only:
            return self._with_calibration(planned)
        return replace(found, experiments=planned.experiments)

    def calibrations(self, cells: tuple[Planned, ...]) -> tuple[Calibration, ...]:
        """Those that these cells rest on."""
        used = dict.fromkeys(cell.calibration for cell in cells if cell.calibration)
        return tuple(self.known[path] for path in used)

    def _published(self, planned: Planned) -> Planned | None:
        """The published cell that was asked for the same, of the same text."""
        for each in self.by_key.get(planned.key, ()):
            if _same_text(each, planned) and same_spec(each.spec, planned.spec):
                return each
        return None

    def _with_calibration(self, planned: Planned) -> Planned:
        """A cell that is measured here takes the published calibration of the same spec, as cells
        that stand beside each other should rest on the same."""
        own = next((c for c in self.study.calibrations if c.path == planned.calibration), None)
        return planned if own is None else replace(planned, calibration=self._at_hand(own).path)

    def _at_hand(self, planned: Calibration) -> Calibration:
        """The published calibration that was asked for the same, of the same text; or else the
        planned one."""
        for each in self.own:
            same = each.model == planned.model and _same_text(each, planned)
            if same and _same(each.spec, planned.spec, CALIBRATION):
                return each
        return planned

    def _there(self, planned: Planned) -> bool:
        return (self.study.root / planned.path).exists()

    def _stored(self, result: _Result) -> _Result:
        """A result as it lies in the unpacked archive."""
        moved = {"store": self.store, "text": self._moved(result.text)}
        if isinstance(result, Planned) and result.calibration:
            moved["calibration"] = self._moved(result.calibration)
        return replace(result, **moved)

    def _moved(self, path: str) -> str:
        return self.store + path.removeprefix(STORE)


def _same_text(one: Planned | Calibration, other: Planned | Calibration) -> bool:
    return Path(one.text).name == Path(other.text).name


def same_spec(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a cell was asked for what is wanted now, where options that came later have their
    defaults."""
    if found.keys() != wanted.keys():
        return False
    known: dict[str, Mapping[str, Option]] = {
        "method": methods.method(wanted["method"]["policy"]).options,
        "task": tasks.options_of(wanted["task"]["kind"]),
        "calibration": CALIBRATION,
    }
    return all(
        _same(found[key], wanted[key], known[key]) if key in known else found[key] == wanted[key]
        for key in wanted
    )


def _same(
    found: Mapping[str, Any], wanted: Mapping[str, Any], options: Mapping[str, Option]
) -> bool:
    later = {key: options[key].default for key in wanted.keys() - found.keys() if key in options}
    return _plain({**later, **found}) == _plain(wanted)


def _plain(value: Any) -> Any:
    """As it is in JSON, where tuples are lists."""
    return json.loads(json.dumps(value))
