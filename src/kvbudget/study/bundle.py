"""Finished cells in one archive, so that others build the paper from them without a GPU.

An archive holds records and what they rest on, as small JSON files, and no weights. Its first file
is a manifest: the hashes of all others, and the plan's entries of all results, so that a plan finds
its own among them without reading them.
"""

import hashlib
import io
import json
import lzma
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvbudget.errors import UserError
from kvbudget.study import identity, records
from kvbudget.study.plan import STORE, Calibration, Planned, Study, made

_MANIFEST = "manifest.json"
_FORMAT = 3
_KEY = "[a-z0-9][a-z0-9._-]*"
#: The only names an archive may hold; none leads out of the folder that it is unpacked into.
_NAME = re.compile(
    rf"(models|text)/{_KEY}\.verified\.json|(code|attested)/[0-9a-f]{{64}}\.json"
    rf"|calibrations/{_KEY}/{_KEY}\.json"
    rf"|cells/{_KEY}/{_KEY}/L\d+/{_KEY}/B[a-z0-9.-]+\.json"
)
#: Bytes; a record takes some hundred thousand.
_LARGEST = 64 * 2**20


@dataclass(frozen=True)
class Manifest:
    """What an archive says that it holds.

    Attributes:
        study: that it was made of.
        files: sha256 by name.
        models: identities by key; see `kvbudget.study.identity`.
        cells, calibrations: the plan's entries of the results in it, as if they lay in results/.
    """

    study: str
    files: dict[str, str]
    models: dict[str, str]
    cells: tuple[Planned, ...]
    calibrations: tuple[Calibration, ...]


def pack(study: Study, out: Path) -> tuple[int, int]:
    """Write the archive of a study's finished cells; returns how many, and how many are planned.

    The same files give the same bytes.

    Raises:
        UserError: no cell is finished, what the cells rest on is missing, or two results of one
            name differ.
    """
    cells = [cell.planned for cell in records.load(study)[0]]
    if not cells:
        raise UserError(f"study {study.name} has no finished cell; run `{study.run([])}` first")
    used = {cell.calibration for cell in cells}
    calibrations = [each for each in study.calibrations if each.path in used]
    files: dict[str, bytes] = {}
    for each in (*cells, *calibrations):
        notes = records.attestations(study, each)
        needed = [each.path, each.verified, each.verified_text, each.code_file]
        needed += [each.attested] if notes else []
        needed += [f"{each.store}/code/{note['code']}.json" for note in notes]
        for path in needed:
            name, content = path.removeprefix(f"{each.store}/"), _read(study.root / path)
            # What was found of a model and a text is held against each record by `verify`.
            if files.setdefault(name, content) != content and path == each.path:
                raise UserError(
                    f"{path} and another {name} that cells rest on differ; remove the one under"
                    f" {STORE}/ and what was measured with it"
                )
    manifest = {
        "format": _FORMAT,
        "study": study.name,
        "files": {name: sha256(files[name]) for name in sorted(files)},
        "models": {
            key: identity.model_identity(key, study.config["models"][key], study.root)
            for key in sorted({each.model for each in (*cells, *calibrations)})
        },
        "cells": [_entry(each) for each in cells],
        "calibrations": [_entry(each) for each in calibrations],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f"{out.name}.part")
    with lzma.open(part, "wb", preset=9) as raw, tarfile.open(fileobj=raw, mode="w") as archive:
        listed = {_MANIFEST: json.dumps(manifest).encode(), **dict(sorted(files.items()))}
        for name, content in listed.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    part.replace(out)
    return len(cells), len(study.cells) + study.left_out


def _entry(result: Planned | Calibration) -> dict[str, Any]:
    """A result's entry as it is in a plan that has it in results/."""
    here = {"store": STORE, "text": f"{STORE}/text/{Path(result.text).name}"}
    if isinstance(result, Planned) and result.calibration:
        # A cell that was measured here may rest on a published calibration.
        name = result.calibration.split("/calibrations/")[1]
        here["calibration"] = f"{STORE}/calibrations/{name}"
    return vars(replace(result, **here))


def read(archive: Path) -> Manifest:
    """What an archive says that it holds; the rest of it is not looked at.

    Raises:
        UserError: it is no archive of this format.
    """
    name, content = next(_entries(archive), ("", b""))
    if name != _MANIFEST:
        raise _refused(archive, "no manifest")
    return _manifest(archive, content)


def unpack(archive: Path, root: Path = Path()) -> tuple[str, int]:
    """Put an archive's files into `root`/results; returns the study's name and how many cells.

    All of the archive is checked before anything is written, and nothing that is there is
    replaced by something else.

    Raises:
        UserError: the archive is altered or holds what it may not, or a file is there already with
            other content.
    """
    manifest, files = _checked(archive)
    files = {f"{STORE}/{name}": content for name, content in files.items()}
    different = [name for name, content in files.items() if _differs(root / name, content)]
    if different:
        raise UserError(
            f"{different[0]} is there already and differs from the bundle's"
            f" ({len(different)} such files); nothing was unpacked: move them away, or unpack into"
            " a fresh clone"
        )
    for name, content in files.items():
        write(root / name, content)
    return manifest.study, len(manifest.cells)


def contents(archive: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Some of an archive's files, all of which is checked."""
    files = _checked(archive)[1]
    return {name: files[name] for name in names}


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)


def _entries(archive: Path) -> Iterable[tuple[str, bytes]]:
    """Names and contents of the plain small files of an archive, one after the other."""
    seen: set[str] = set()
    try:
        with tarfile.open(archive, "r|xz") as tar:
            for entry in tar:
                if not entry.isreg() or entry.size > _LARGEST or entry.name in seen:
                    raise _refused(archive, f"{entry.name!r} is no plain small file of its own")
                if entry.name != _MANIFEST and not _NAME.fullmatch(entry.name):
                    raise _refused(archive, f"{entry.name!r} is no name of a result")
                seen.add(entry.name)
                yield entry.name, tar.extractfile(entry).read()
    except FileNotFoundError:
        raise UserError(f"{archive} does not exist") from None
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise _refused(archive, f"no whole archive ({error})") from None


def _manifest(archive: Path, content: bytes) -> Manifest:
    try:
        raw = json.loads(content)
        if (form := raw["format"]) != _FORMAT:
            raise UserError(f"{archive} has format {form}, this version reads {_FORMAT}")
        return Manifest(
            raw["study"],
            dict(raw["files"]),
            dict(raw["models"]),
            tuple(made(Planned, each) for each in raw["cells"]),
            tuple(made(Calibration, each) for each in raw["calibrations"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused(archive, f"no manifest ({error!r})") from None


def _checked(archive: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and all files of an archive that keeps its word."""
    files = dict(_entries(archive))
    if _MANIFEST not in files:
        raise _refused(archive, "no manifest")
    manifest = _manifest(archive, files.pop(_MANIFEST))
    for name in sorted(files.keys() | manifest.files.keys()):
        if name not in files or manifest.files.get(name) != sha256(files[name]):
            raise _refused(archive, f"{name} is not what the manifest says")
    return manifest, files


def _refused(archive: Path, reason: str) -> UserError:
    return UserError(f"{archive}: {reason}; it was altered or cut short: get it again")


def _differs(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() != content


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path} is missing, and cells rest on it; run `make paper` first")
    return path.read_bytes()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
