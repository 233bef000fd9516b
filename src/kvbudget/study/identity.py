"""What makes two results the same: digests of all that a result depends on.

A result lies under a name that holds its identity. So a record is never stale: what another spec,
code, model or text gives has another name, and comes back when the change is taken back.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvbudget.errors import UserError
from kvbudget.sources import lock
from kvbudget.sources.registry import DESCRIPTIVE

#: Hex digits of an identity in a file's name.
DIGITS = 10
LOCK = Path("workflow/models.lock.yaml")


def canonical(value: Any) -> str:
    """JSON with one spelling per value: the identity of a spec."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def model_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a model's files: its entry without what only the study and the paper use."""
    # A random model is made for its context.
    ignored = set(DESCRIPTIVE) - ({"context"} if entry["source"] == "random" else set())
    return {key: value for key, value in entry.items() if key not in ignored}


def model_identity(key: str, entry: Mapping[str, Any], root: Path) -> str:
    """Digest of where a model comes from and of the hash of each of its files.

    Of a folder of the user's own whose hashes are not recorded, names, sizes and times stand for
    the content: to read gigabytes at each start would take too long.
    """
    locked = _locked((root / LOCK).resolve()).get(key)
    parts: list[Any] = [model_entry(entry), locked]
    if entry["source"] == "local" and locked is None:
        parts.append(fingerprint(root / entry["path"]))
    return digest(parts)


def fingerprint(directory: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and nanoseconds of last change of each file below a directory, in order."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    stats = ((path.relative_to(directory).as_posix(), path.stat()) for path in files)
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def text_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a haystack's text: its entry without its title."""
    return {key: value for key, value in entry.items() if key != "title"}


def text_files(entry: Mapping[str, Any]) -> list[str]:
    """Files of the user's own that a haystack is made of."""
    if entry["source"] != "file":
        return []
    return [entry[key] for key in ("path", "translation") if key in entry]


def text_identity(key: str, entry: Mapping[str, Any], root: Path) -> str:
    """Digest of a haystack's entry and of the content of the user's own files that it names.

    Raises:
        UserError: such a file is not there, and the entry does not say its hash.
    """
    parts: list[Any] = [text_entry(entry)]
    if entry["source"] == "file":
        for name, hashed in (("path", "sha256"), ("translation", "translation_sha256")):
            if name in entry and hashed not in entry:
                parts.append(_sha256(key, root / entry[name], hashed))
    return digest(parts)


def _sha256(key: str, path: Path, hashed: str) -> str:
    if not path.is_file():
        raise UserError(
            f"haystack {key}: file {path} does not exist; put it there, or give its {hashed} to "
            "use results that were measured on it"
        )
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _locked(path: Path) -> dict[str, dict[str, str]]:
    return lock.read(path)
