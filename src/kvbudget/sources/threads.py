"""How many processors a process may use, and what else measures beside it. Imports no torch."""

import math
import os
from pathlib import Path

from kvbudget.errors import UserError

GIVEN = "KVBUDGET_THREADS"
AT_ONCE = "KVBUDGET_AT_ONCE"


def threads() -> int:
    """Threads to compute with: `KVBUDGET_THREADS`, or the processors this process may use.

    Raises:
        UserError: `KVBUDGET_THREADS` is no number of threads.
    """
    return _number(GIVEN, "threads") or usable()


def at_once() -> int:
    """Measurements that share the processors, or the GPU, of this one: `KVBUDGET_AT_ONCE`, or 1.

    Raises:
        UserError: `KVBUDGET_AT_ONCE` is no number of measurements.
    """
    return _number(AT_ONCE, "measurements") or 1


def _number(name: str, of: str) -> int | None:
    """A number of 1 or more in the environment, or None where there is none."""
    given = os.environ.get(name)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit()) or int(given) < 1:
        raise UserError(f"{name} is {given!r}; give a number of {of}, at least 1")
    return int(given)


def usable() -> int:
    """Processors that this process may use: those of the machine, of its affinity (taskset, Slurm)
    and of its container's quota (docker --cpus), whichever are fewest."""
    # Neither macOS nor Windows lets a process ask for its affinity.
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, int(min(count, _quota())))


def _quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Processors that the control groups of this process allow (version 2, `cpu.max`)."""
    try:
        groups = [line.split("::", 1)[1] for line in own.read_text().splitlines() if "::" in line]
    except OSError:
        return math.inf
    least = math.inf
    for group in groups:
        place = root / group.strip("/")
        for folder in (place, *place.parents):
            if folder.is_relative_to(root) and (found := _limit(folder / "cpu.max")):
                least = min(least, found)
    return least


def _limit(file: Path) -> float | None:
    """What a `cpu.max` says: microseconds of processor time in a period of so many."""
    try:
        quota, period = file.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or `max`: no limit
        return None
