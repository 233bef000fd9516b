"""Whether a run of a study is going on: a lock on a file, which the kernel gives up when the run
ends, however it ends. What changed the file last is the start of the run."""

import os
from pathlib import Path

from kvbudget.study.plan import Study


def _file(study: Study) -> Path:
    return study.root / study.directory / ".run.lock"


def hold(study: Study) -> None:
    """Say that this process runs the study, as long as it lives."""
    import fcntl  # which Windows lacks, where Snakemake runs in WSL alone

    file = _file(study)
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)  # never closed, nor inherited
    # Shared, as Snakemake itself sees to it that no two runs make the same files.
    fcntl.flock(lock, fcntl.LOCK_SH)
    os.utime(file)


def began(study: Study) -> float | None:
    """When the run that is going on began, in seconds of the epoch; None if none is."""
    try:
        import fcntl
    except ImportError:  # Windows: no run goes on there
        return None
    try:
        with _file(study).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return _file(study).stat().st_mtime
    return None
