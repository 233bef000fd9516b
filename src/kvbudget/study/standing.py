"""Whether today's code stands for a record: it measured it, or was seen to give the same.

A record says by which code it was measured, as a digest, and the file of that digest by which
modules and libraries. Libraries that changed are named, but do not make a record stale.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kvbudget.study import expand
from kvbudget.study.plan import Calibration, Planned, Study
from kvbudget.study.provenance import PACKAGE
from kvbudget.study.records import attestations

MEASURED, ATTESTED, EARLIER = "measured", "attested", "earlier code"
#: In place of modules, where it is not known which have changed.
UNKNOWN = "modules that are not known"


@dataclass(frozen=True)
class Standing:
    """How a record stands to today's code.

    Attributes:
        kind: `MEASURED` by it; by earlier code and `ATTESTED`, as today's gives the same; or by
            `EARLIER` code, of which nothing is known.
        modules: that have changed since it was measured.
        libraries: that have, as `torch 2.11.0 → 2.13.0`.
    """

    kind: str
    modules: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()

    @property
    def stale(self) -> bool:
        return self.kind == EARLIER

    @property
    def why(self) -> str:
        """What has changed, in words."""
        return f"measured by earlier code ({', '.join(self.modules)} changed since)"


class Standings:
    """How the records of a study stand to today's code."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._parts: dict[str, dict[str, str] | None] = {}

    def of(self, planned: Planned | Calibration, record: dict[str, Any]) -> Standing:
        """How the record of a cell or a calibration stands."""
        if not planned.published:  # its name holds the digest of the code
            return Standing(MEASURED)
        today = expand.code_of(planned)
        modules, libraries = self._since(planned, record["code"], today)
        if not modules:
            return Standing(MEASURED, (), libraries)
        lines = attestations(self.study, planned)
        attested = (self._since(planned, each["code"], today) for each in lines)
        if any(not changed for changed, _ in attested):
            return Standing(ATTESTED, modules, libraries)
        return Standing(EARLIER, modules, libraries)

    def _since(
        self, planned: Planned | Calibration, code: str, today: str
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Modules and libraries that changed between a digest of code and today's."""
        if code == today:
            return (), ()
        old, new = self._of(planned, code), self._today[today]
        if old is None:
            return (UNKNOWN,), ()
        changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        modules = tuple(key for key in changed if key.split(".")[0] == PACKAGE)
        others = (key for key in changed if key not in modules)
        return modules, tuple(f"{key} {old.get(key)} → {new.get(key)}" for key in others)

    @cached_property
    def _today(self) -> dict[str, dict[str, str]]:
        return expand.code_parts(self.study)

    def _of(self, planned: Planned | Calibration, code: str) -> dict[str, str] | None:
        """What a digest stands for; None if that is not known."""
        if code not in self._parts:
            file = self.study.root / planned.store / "code" / f"{code}.json"
            try:
                self._parts[code] = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                self._parts[code] = self._today.get(code)
        return self._parts[code]
