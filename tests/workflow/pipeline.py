"""How tests run the pipeline: in a copy of the repository, with the `tiny` study."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).parents[2]
TINY = "workflow/studies/tiny.yaml"


def snakemake(repo: Path, *arguments: str, configs: tuple[str, ...] = (TINY,)):
    """Two cells at a time: what they time does not matter here."""
    command = [sys.executable, "-m", "snakemake", "--configfile", *configs]
    return subprocess.run(
        [*command, "--resources", "gpu=2", "--cores", "2", *arguments],
        cwd=repo,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )


def copy_repository(to: Path) -> None:
    """What git would commit, as a fresh clone has it."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=REPO, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (REPO / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, to / name)


def place(path: str) -> str:
    """The path of a result without its identity."""
    return re.sub(r"-[0-9a-f]{10}(?=\.)", "", path)


def paths(repo: Path, config: str = TINY) -> dict[str, str]:
    """Paths of a study's cells and calibrations in a copy of the repository, by their place: as
    the code and texts of the copy give them."""
    script = (
        "import json, sys; from kvbudget.study.config import read; "
        "from kvbudget.study.expand import expand; study = expand(read(sys.argv[1])); "
        "print(json.dumps([each.path for each in (*study.cells, *study.calibrations)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, config],
        cwd=repo,
        env=os.environ | {"PYTHONPATH": str(repo / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    return {place(path): path for path in json.loads(done.stdout)}


@contextmanager
def edited(file: Path, change):
    """A file with other text for a while; afterwards as it was, time stamp and all."""
    before, stat = file.read_text(), file.stat()
    file.write_text(change(before))
    assert file.read_text() != before
    try:
        yield
    finally:
        file.write_text(before)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@contextmanager
def away(path: Path):
    """A file or directory that is not there for a while."""
    hidden = path.with_name(path.name + ".away")
    path.rename(hidden)
    try:
        yield
    finally:
        hidden.rename(path)
