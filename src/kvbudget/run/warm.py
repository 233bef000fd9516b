"""Measurements that start warm: one process imports torch and transformers once, and forks.

A command that measures asks the process that listens at `KVBUDGET_WARM` for a fork, which runs it
with the words, folder, environment and output of the one that asked. The one that asked waits and
ends as its fork does; if it is killed, so is the fork. To whoever started it, it is a process like
any other, with its own log and exit status. Where nobody listens, the command runs by itself.

For Linux, and where no GPU is: CUDA and the threads of other systems do not survive a fork.
"""

import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from kvbudget.errors import UserError
from kvbudget.run import lease

PLACE = "KVBUDGET_WARM"
#: What takes long to import. No model is loaded: forks must not inherit what threads computed.
_AHEAD = "kvbudget.run.cell"


def possible() -> bool:
    """Whether processes of this machine can be forked once torch is imported."""
    return sys.platform == "linux" and not lease.visible(os.environ)


def start() -> None:
    """Start the process that forks, and name its place in the environment. It ends with this one,
    however this one ends."""
    place = Path(tempfile.mkdtemp(prefix="kvbudget-"), "door")
    ours, _ = os.pipe()  # the other end is open as long as this process lives
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(place))
        door.listen()
        subprocess.Popen(
            [sys.executable, "-m", "kvbudget", "warm", str(place), str(door.fileno())],
            stdin=ours,
            pass_fds=[door.fileno()],
        )
    os.close(ours)
    os.environ[PLACE] = str(place)


def serve(place: Path, door: socket.socket, run: Callable[[list[str]], None]) -> None:
    """Fork for every command that asks, until standard input ends.

    Args:
        place: file of the socket; its folder is removed at the end.
        door: the socket, listening.
        run: what a fork does with the words of a command.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # forks are interrupted, as they measure
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them but who asked
    importlib.import_module(_AHEAD)
    while door in select.select([door, sys.stdin], [], [])[0]:
        caller, _ = door.accept()
        if not os.fork():
            door.close()
            _work(caller, run)
        caller.close()
    shutil.rmtree(place.parent, ignore_errors=True)


def hand_over(words: list[str]) -> None:
    """Let a fork run a command, and end as it does. Returns where nobody listens.

    Raises:
        UserError: the fork was killed.
    """
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(os.environ[PLACE])
        except OSError:
            return
        asked = {"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
        try:
            socket.send_fds(caller, [b"\n"], [1, 2])
            caller.sendall(json.dumps(asked).encode() + b"\n")
            status = caller.recv(1)
        except ConnectionError:
            status = b""
    if not status:
        raise UserError(
            "the process that measured was killed; see that there is memory for it, and run it "
            "again: finished contexts stay"
        )
    sys.exit(status[0])


def _work(caller: socket.socket, run: Callable[[list[str]], None]) -> NoReturn:
    """Be the process that asked: its output, folder and environment, and its end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, outputs, _, _ = socket.recv_fds(caller, 1, 2)
    with caller.makefile("rb") as message:
        asked = json.loads(message.readline())
    for output, ours in zip([os.open(os.devnull, os.O_RDONLY), *outputs], (0, 1, 2), strict=True):
        os.dup2(output, ours)
        os.close(output)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    del os.environ[PLACE]
    threading.Thread(target=_end_with, args=(caller,), daemon=True).start()
    status = _status(lambda: run(asked["words"]))
    sys.stdout.flush()
    sys.stderr.flush()
    caller.sendall(bytes([status]))
    os._exit(status)


def _end_with(caller: socket.socket) -> None:
    """Wait for the end of the process that asked; it says nothing more before."""
    caller.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _status(run: Callable[[], None]) -> int:
    """Exit status of what runs, as Python would give it."""
    try:
        run()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
