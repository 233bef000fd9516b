"""Finished cells in one archive, so that others build the paper from them without a GPU.

An archive holds records and what they rest on, as small JSON files with a manifest of their hashes,
and no weights.
"""

import gzip
import hashlib
import io
import json
import re
import tarfile
import zlib
from pathlib import Path

from kvbudget.errors import UserError
from kvbudget.study import records
from kvbudget.study.older import CODE
from kvbudget.study.plan import Study

_MANIFEST = "manifest.json"
_FORMAT = 2
_KEY = "[a-z0-9][a-z0-9._-]*"
#: The only names an archive may hold; none leads out of results/.
_NAME = re.compile(
    rf"results/({_KEY}/environment\.json|(models|text)/{_KEY}\.verified\.json"
    rf"|code/[0-9a-f]{{64}}\.json|calibrations/{_KEY}/{_KEY}\.json"
    rf"|cells/{_KEY}/{_KEY}/L\d+/{_KEY}/B[a-z0-9.-]+\.json)"
)
#: Bytes; a record takes some hundred thousand.
_LARGEST = 64 * 2**20


def pack(study: Study, out: Path) -> tuple[int, int]:
    """Write the archive of a study's finished cells; returns how many, and how many are planned.

    The same files give the same bytes.

    Raises:
        UserError: no cell is finished, or what the cells rest on is missing.
    """
    cells = [cell.planned for cell in records.load(study)[0]]
    if not cells:
        raise UserError(f"study {study.name} has no finished cell; run `{study.run([])}` first")
    used = {cell.calibration for cell in cells}
    calibrations = [each for each in study.calibrations if each.path in used]
    made = [*cells, *calibrations]
    names = {f"{study.directory}/environment.json"}
    names |= {each.path for each in made}
    names |= {f"results/models/{each.model}.verified.json" for each in made}
    names |= {Path(each.text).with_suffix(".verified.json").as_posix() for each in made}
    names |= {f"{CODE}/{each.code}.json" for each in made}
    files = {name: _read(study.root / name) for name in sorted(names)}
    manifest = {
        "format": _FORMAT,
        "study": study.name,
        "files": {name: sha256(content) for name, content in files.items()},
    }
    with (
        out.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name, content in {_MANIFEST: json.dumps(manifest, indent=1).encode(), **files}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return len(cells), len(study.cells)


def unpack(archive: Path, root: Path = Path()) -> tuple[str, int]:
    """Put an archive's files into `root`/results; returns the study's name and how many cells.

    All of the archive is checked before anything is written, and nothing that is there is
    replaced by something else.

    Raises:
        UserError: the archive is altered or holds what it may not, or a file is there already with
            other content.
    """
    study, files = _checked(archive)
    different = [name for name, content in files.items() if _differs(root / name, content)]
    if different:
        raise UserError(
            f"{different[0]} is there already and differs from the bundle's"
            f" ({len(different)} such files); nothing was unpacked: move them away, or unpack into"
            " a fresh clone"
        )
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(content)
        part.replace(path)
    return study, sum(name.startswith("results/cells/") for name in files)


def _checked(archive: Path) -> tuple[str, dict[str, bytes]]:
    """Name of the study and all files of an archive that keeps its word."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            files = {}
            for entry in tar:
                if not entry.isreg() or entry.size > _LARGEST or entry.name in files:
                    raise _refused(archive, f"{entry.name!r} is no plain small file of its own")
                if entry.name != _MANIFEST and not _NAME.fullmatch(entry.name):
                    raise _refused(archive, f"{entry.name!r} is no name of a result")
                files[entry.name] = tar.extractfile(entry).read()
        manifest = json.loads(files.pop(_MANIFEST))
        study, wanted, form = manifest["study"], manifest["files"], manifest["format"]
    except FileNotFoundError:
        raise UserError(f"{archive} does not exist") from None
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise _refused(archive, f"no whole archive ({error})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused(archive, f"no manifest ({error!r})") from None
    if form != _FORMAT:
        raise UserError(f"{archive} has format {form}, this version reads {_FORMAT}")
    for name in sorted(files.keys() | wanted.keys()):
        if name not in files or wanted.get(name) != sha256(files[name]):
            raise _refused(archive, f"{name} is not what the manifest says")
    return study, files


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
