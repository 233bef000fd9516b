"""`workflow/models.lock.yaml`: the hash of every file of every model that has been looked at."""

import hashlib
from pathlib import Path

import yaml

from kvbudget.errors import UserError
from kvbudget.sources.digest import file_sha256

_HEADER = """\
# sha256 of every file of each model as `kvbudget fetch-model` leaves it.
# Written by `kvbudget lock`, read before any model is used.
"""


def hash_files(directory: Path) -> dict[str, str]:
    """sha256 of each file below `directory`, by relative name, in the order of names."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): file_sha256(path) for path in files}


def digest(files: dict[str, str]) -> str:
    """One sha256 for a whole model: over the lines `hash  name` of its files."""
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read(lock: Path) -> dict[str, dict[str, str]]:
    """Hashes by model and file; empty when there is no lock file yet."""
    if not lock.exists():
        return {}
    return yaml.safe_load(lock.read_text()) or {}


def update(lock: Path, key: str, files: dict[str, str]) -> None:
    """Record the files of one model, leaving the other models' entries alone."""
    models = read(lock) | {key: files}
    body = yaml.safe_dump(dict(sorted(models.items())), sort_keys=False, width=200)
    lock.write_text(_HEADER + body)


def compare(lock: Path, key: str, wanted: dict[str, str], files: dict[str, str]) -> None:
    """Refuse files that differ from the recorded ones, naming the first that does."""
    for name in sorted(files.keys() | wanted.keys()):
        if files.get(name) == wanted.get(name):
            continue
        if name not in files:
            fault = "is missing"
        elif name not in wanted:
            fault = f"is not among the files that {lock} lists"
        else:
            fault = f"has sha256 {files[name]}, {lock} says {wanted[name]}"
        raise UserError(
            f"model {key}: {name} {fault}; delete the model's directory and download it again, or,"
            f" if the change is meant, record it: kvbudget lock --model {key} --dir DIRECTORY"
            f" --lock {lock}"
        )
