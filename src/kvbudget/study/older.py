"""Why a result that a plan wants is not there, though one like it is."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CODE = Path("results/code")


def explain(root: Path, path: str, spec: dict[str, Any], code: str) -> str:
    """What the newest result beside `path`, of the same place in the study, differs in.

    Args:
        root: directory that `path` starts from.
        path: of the result that is missing; its name ends in its identity.
        spec, code: those that are wanted.
    """
    wanted = root / path
    beside = wanted.parent.glob(f"{wanted.stem.rpartition('-')[0]}-*.json")
    newest = max(beside, key=lambda file: file.stat().st_mtime_ns, default=None)
    if newest is None:
        return "no record"
    try:
        record = json.loads(newest.read_text(encoding="utf-8"))
        reasons = [_other_spec(record["spec"], spec), _other_code(root, record["code"], code)]
    except (ValueError, KeyError, TypeError):
        return "no record"
    found = "; ".join(filter(None, reasons)) or "another model, text or calibration"
    return f"no record; {newest.name} was measured with {found}"


def _other_spec(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What a record's spec says otherwise than the plan, key by key."""
    old, new = dict(_flat(found)), dict(_flat(wanted))
    changed = [
        f"{key} {old.get(key, 'absent')} where the plan has {new.get(key, 'none')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    return f"another spec ({', '.join(changed)})" if changed else ""


def _flat(value: object, key: str = "") -> Iterable[tuple[str, object]]:
    if not isinstance(value, dict):
        yield key, json.dumps(value)
        return
    for name, item in value.items():
        yield from _flat(item, f"{key}.{name}" if key else name)


def _other_code(root: Path, found: str, wanted: str) -> str:
    """Which modules and libraries have changed since a record was measured, where it is known."""
    if found == wanted:
        return ""
    try:
        old, new = (
            json.loads((root / CODE / f"{digest}.json").read_text(encoding="utf-8"))
            for digest in (found, wanted)
        )
    except (OSError, ValueError):
        return f"other code ({found[:12]}, the plan has {wanted[:12]})"
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return f"other code ({', '.join(changed)} changed since)"
