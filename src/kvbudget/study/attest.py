"""Records of earlier code beside what today's code gives: which can be compared here, whether they
are the same, and the note of it.

A note lies beside the records and not in them, as cells say by its hash which calibration they
rest on.
"""

import datetime
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kvbudget.policies import registry as methods
from kvbudget.run.files import write_json
from kvbudget.study import expand, records
from kvbudget.study.plan import Calibration, Planned, Study
from kvbudget.study.standing import Standings

#: What a calibration says of its making, not of heads.
_MAKING = ("code", "identity", "provenance")
#: Libraries whose versions may change the last digit.
LIBRARIES = ("torch", "transformers")
#: Those in the peers' environment.
PEERS = ("kvpress", *LIBRARIES)


def stale(study: Study) -> list[tuple[Planned | Calibration, dict[str, Any]]]:
    """Calibrations and cells that were measured by earlier code, with their records."""
    standings = Standings(study)
    found = [(each, _json(study.root / each.path)) for each in study.calibrations]
    found += [(cell.planned, cell.record) for cell in records.load(study)[0]]
    return [(planned, record) for planned, record in found if standings.of(planned, record).stale]


def hindrance(planned: Planned | Calibration, record: dict[str, Any], here: dict[str, Any]) -> str:
    """Why a record cannot be compared on this machine; empty if it can.

    Args:
        planned: its entry in the plan.
        record: the record.
        here: `versions` by library, whether there is `cuda`, by device the `kernels`, and `peers`,
            the versions in the peers' environment, None if there is none.
    """
    made, device = record["provenance"], device_of(record)
    if device == "cuda" and not here["cuda"]:
        return f"measured on {made['device']}, and there is no GPU here"
    elsewhere = isinstance(planned, Planned) and methods.method(planned.policy).elsewhere
    if elsewhere and here["peers"] is None:
        return "measured with kvpress, which is not here; make peers installs it"
    names, versions = (PEERS, here["peers"]) if elsewhere else (LIBRARIES, here["versions"])
    other = [
        f"{name} {_public(made['versions'][name])} (here {_public(versions[name])})"
        for name in names
        if _public(made["versions"][name]) != _public(versions[name])
    ]
    if not elsewhere and made["kernels"] != here["kernels"][device]:
        other.append(f"kernels by {made['kernels']} (here {here['kernels'][device]})")
    return f"measured with {', '.join(other)}" if other else ""


def device_of(record: dict[str, Any]) -> str:
    """The kind of device that a record was measured on: `cpu` or `cuda`."""
    return "cpu" if record["provenance"]["device"] == "cpu" else "cuda"


def difference(record: dict[str, Any], again: dict[str, Any]) -> str:
    """What of a record comes out otherwise, in words; empty if nothing does.

    Args:
        record: of a cell or a calibration.
        again: the same, computed again; of a cell perhaps its first contexts alone.
    """
    if "samples" not in record:
        keys = [k for k in record if k not in _MAKING and record[k] != again.get(k)]
        return ", ".join(keys)
    before = {sample["id"]: sample for sample in record["samples"]}
    found = (
        (each["id"], key)
        for each in again["samples"]
        for key in before.get(each["id"], {}).keys() | each.keys()
        if each["id"] not in before or before[each["id"]].get(key) != each.get(key)
    )
    counts = Counter(key for _, key in found)
    samples = len(again["samples"])
    return ", ".join(f"{key} of {counts[key]} in {samples} samples" for key in sorted(counts))


def note(study: Study, planned: Planned | Calibration, again: dict[str, Any]) -> None:
    """Note that a result came out the same, and by which code, versions and device.

    Args:
        study: it is published.
        planned: the result's entry in the plan.
        again: the result, computed again by today's code.
    """
    today, made = expand.code_of(planned), again["provenance"]
    line = {
        "code": today,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "contexts": contexts_of(again),
        "versions": made["versions"],
        "device": made["device"],
    }
    parts = expand.code_parts(study)[today]
    write_json(study.root / planned.store / "code" / f"{today}.json", parts, indent=1)
    lines = [*records.attestations(study, planned), line]
    write_json(study.root / planned.attested, {"attested": lines}, indent=1)


def contexts_of(again: dict[str, Any]) -> int | None:
    """Contexts that were computed of a cell; None of a calibration, which is computed whole."""
    if "samples" not in again:
        return None
    return len({sample["context_id"] for sample in again["samples"]})


def hindered(
    found: Iterable[tuple[Planned | Calibration, dict[str, Any]]], here: Mapping[str, Any]
) -> Counter:
    """How many of some records cannot be compared here, by why."""
    reasons = (hindrance(planned, record, dict(here)) for planned, record in found)
    return Counter(filter(None, reasons))


def _public(version: str) -> str:
    """A version without the name of its build."""
    return version.split("+")[0]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
