"""Measurements that start warm: one process imports torch and transformers once, and forks.

A command that measures asks the process that listens at `KVBUDGET_WARM` for a fork, which runs it
with the words, folder, environment and output of the one that asked. The one that asked waits and
ends as its fork does; if it is killed, so is the fork. To whoever started it, it is a process like
any other, with its own log and exit status. Where nobody listens, the command runs by itself.

It listens at a name, not a file, so that nothing is left when all are killed. A name is open to all
users of a machine: each end sees that the other is the same user.

For Linux, and where no GPU is: CUDA and the threads of other systems do not survive a fork.
"""

import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
import uuid
from collections.abc import Callable
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
    place = f"kvbudget-{uuid.uuid4()}"
    ours, _ = os.pipe()  # the other end is open as long as this process lives
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(_address(place))
        door.listen()
        subprocess.Popen(
            [sys.executable, "-m", "kvbudget", "warm", str(door.fileno())],
            stdin=ours,
            pass_fds=[door.fileno()],
        )
    os.close(ours)
    os.environ[PLACE] = place


def serve(door: socket.socket, run: Callable[[list[str]], None]) -> None:
    """Fork for every command that asks, until standard input ends.

    Args:
        door: the socket, listening.
        run: what a fork does with the words of a command.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # forks are interrupted, as they measure
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them but who asked
    importlib.import_module(_AHEAD)
    while door in select.select([door, sys.stdin], [], [])[0]:
        caller, _ = door.accept()
        if _is_ours(caller) and not os.fork():
            door.close()
            _work(caller, run)
        caller.close()


def hand_over(words: list[str]) -> None:
    """Let a fork run a command, and end as it does. Returns where nobody listens.

    Raises:
        UserError: the fork was killed.
    """
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(_address(os.environ[PLACE]))
        except OSError:
            return
        if not _is_ours(caller):
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


def _address(place: str) -> str:
    """A name that Linux knows as long as someone listens at it; see unix(7), abstract."""
    return f"\0{place}"


def _is_ours(peer: socket.socket) -> bool:
    """Whether who is at the other end is of the same user."""
    told = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", told)
    return user == os.getuid()


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
