"""Run a command on a GPU of its own.

Where several GPUs are visible (`snakemake --resources gpu=2` on one machine), each command takes
the first that no other one holds, and sees no other. A scheduler that shows a job one GPU has
chosen already, and where none is visible there is nothing to choose: then the command just runs.

A lease is a lock on a file, which the kernel gives up when the process ends, however it ends.
"""

import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvbudget.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_POLL_S = 0.5


def visible(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """Names of the GPUs that a process may use, as they stand in `CUDA_VISIBLE_DEVICES`."""
    if VISIBLE in environment:
        return [name.strip() for name in environment[VISIBLE].split(",") if name.strip()]
    numbers = (re.fullmatch(r"nvidia(\d+)", path.name) for path in devices.glob("nvidia*"))
    return sorted((match[1] for match in numbers if match), key=int)


def acquire(names: list[str], directory: Path) -> str:
    """Wait for the first of the GPUs that is free; it stays leased as long as the process lives."""
    import fcntl  # which Windows lacks: there only a machine of several GPUs cannot share them

    waiting = False
    while True:
        for name in names:
            # A user's own file: in a shared /tmp, another user's cannot always be opened.
            file = f"kvbudget-{os.getuid()}-gpu-{name.replace('/', '-')}.lock"
            lock = os.open(directory / file, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            os.set_inheritable(lock, True)  # the command that takes our place keeps it
            return name
        if not waiting:
            print(f"waiting for one of the GPUs {', '.join(names)}", file=sys.stderr, flush=True)
            waiting = True
        time.sleep(_POLL_S)


def run(command: Sequence[str]) -> None:
    """Become the command, with a GPU of its own. Does not return.

    Raises:
        UserError: there is no such command.
    """
    names = visible(os.environ)
    if len(names) > 1:
        os.environ[VISIBLE] = acquire(names, Path(tempfile.gettempdir()))
    try:
        os.execvp(command[0], command)
    except FileNotFoundError:
        raise UserError(f"there is no command {command[0]!r}; check its name") from None
