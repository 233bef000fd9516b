"""Finished cells in one archive, so that others build the paper from them without a GPU.

`python -m kvbudget.study.bundle pack --study results/{study}/study.json --out FILE` and
`python -m kvbudget.study.bundle unpack FILE`; `make bundle` and `make unbundle`. An archive holds records
and what they rest on, as small JSON files with a manifest of their hashes, and no weights.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import time
import zlib
from pathlib import Path

from kvbudget.analysis import checks
from kvbudget.errors import UserError, run_cli
from kvbudget.study.records import load_study

_MANIFEST = "manifest.json"
_FORMAT = 1
_KEY = "[a-z0-9][a-z0-9._-]*"
#: The only names an archive may hold; none leads out of results/.
_NAME = re.compile(
    rf"results/(environment\.json|(models|text)/{_KEY}\.verified\.json"
    rf"|{_KEY}/(calibrations/{_KEY}(/{_KEY})?\.json|code/[0-9a-f]{{64}}\.json"
    rf"|cells/{_KEY}/{_KEY}/L\d+/{_KEY}/B[a-z0-9.]+\.json))"
)
#: Bytes; a record takes some hundred thousand.
_LARGEST = 64 * 2**20


def pack(study_file: Path, out: Path) -> tuple[int, int]:
    """Write the archive of a study's current cells; returns how many, and how many are planned.

    The same files give the same bytes.

    Raises:
        UserError: no cell is finished, or what the cells rest on is missing.
    """
    plan = load_study(study_file)
    root = study_file.parents[2]
    cells, _ = checks.load(plan)
    if not cells:
        raise UserError(f"study {plan.name} has no finished cell; run `make paper` first")
    models = dict.fromkeys(cell.planned.model for cell in cells)
    haystacks = dict.fromkeys(
        [plan.config["haystack"], *(cell.planned.spec["haystack"] for cell in cells)]
    )
    names = ["results/environment.json"]
    names += [f"results/text/{haystack}.verified.json" for haystack in haystacks]
    names += [f"results/models/{model}.verified.json" for model in models]
    names += [cell.planned.path for cell in cells]
    beside = [
        *study_file.parent.glob("calibrations/**/*.json"),
        *study_file.parent.glob("code/*.json"),
    ]
    names += [path.relative_to(root).as_posix() for path in beside]
    files = {name: _read(root / name) for name in sorted(names)}
    manifest = {
        "format": _FORMAT,
        "study": plan.name,
        "files": {name: _sha256(content) for name, content in files.items()},
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
    return len(cells), len(plan.cells)


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
    # All of one age: no file is newer than another that was made from it, so nothing is made again.
    # What studies share keeps its own, or another study's results would be older than it.
    now = time.time()
    for name, content in files.items():
        path = root / name
        if path.exists() and not name.startswith(f"results/{study}/"):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(content)
        os.utime(part, (now, now))
        part.replace(path)
    return study, sum("/cells/" in name for name in files)


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
        if name not in files or wanted.get(name) != _sha256(files[name]):
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


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="write an archive")
    packing.add_argument("--study", type=Path, required=True, help="results/{study}/study.json")
    packing.add_argument("--out", type=Path, required=True, help="archive to write (.tar.gz)")
    unpacking = commands.add_parser("unpack", help="read an archive into results/")
    unpacking.add_argument("archive", type=Path)
    args = parser.parse_args()
    if args.command == "pack":
        cells, planned = pack(args.study.resolve(), args.out)
        print(f"{args.out}: {cells} of {planned} cells, sha256 {_sha256(args.out.read_bytes())}")
    else:
        study, cells = unpack(args.archive)
        print(f"{cells} cells of study {study}; build its paper with `make paper STUDY={study}`")


if __name__ == "__main__":
    run_cli(main)
