"""A command in a fork of a warm process is, to whoever started it, a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil
import pytest

from kvbudget.run import warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")

#: A warm process that has imported nothing, and whose commands are lines of Python.
SERVER = """
import socket, sys
from kvbudget.run import warm
warm._AHEAD = "json"
warm.serve(socket.socket(fileno=int(sys.argv[1])), lambda words: exec(words[0]))
"""
CALLER = """
import sys
from kvbudget.errors import run_cli
from kvbudget.run import warm
run_cli(lambda: warm.hand_over(sys.argv[1:]))
print("by itself")
"""


@dataclass
class Warm:
    """The process that forks, and where it listens."""

    process: subprocess.Popen
    place: str

    def call(self, line: str, **options) -> subprocess.Popen:
        """A process that asks for a line of Python to be run."""
        environment = {**os.environ, warm.PLACE: self.place, **options.pop("env", {})}
        return subprocess.Popen(
            [sys.executable, "-c", CALLER, line],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
        )  # fmt: skip

    def forks(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()


@pytest.fixture
def server() -> Iterator[Warm]:
    place = f"kvbudget-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"\0{place}")
        door.listen()
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(door.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[door.fileno()],
        )
    yield Warm(process, place)
    process.stdin.close()
    process.wait(20)


def eventually(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def test_output_and_status_are_its_own(server):
    line = "import sys; print('said'); print('warned', file=sys.stderr); sys.exit(7)"
    one, other = server.call(line), server.call("print(1)")
    assert one.communicate() == ("said\n", "warned\n")
    assert other.communicate() == ("1\n", "")
    assert (one.returncode, other.returncode) == (7, 0)


def test_an_error_is_told_where_it_was_asked(server):
    caller = server.call("1 / 0")
    assert "ZeroDivisionError" in caller.communicate()[1]
    assert caller.returncode == 1


def test_folder_and_environment_are_those_of_the_caller(server, tmp_path):
    line = f"import os; print(os.getcwd(), os.environ['ITS'], {warm.PLACE!r} in os.environ)"
    caller = server.call(line, cwd=tmp_path, env={"ITS": "own"})
    assert caller.communicate()[0] == f"{tmp_path} own False\n"


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_who_kills_the_caller_kills_the_fork(server, by):
    caller = server.call("import time; print('here', flush=True); time.sleep(60)")
    assert caller.stdout.readline() == "here\n"
    (fork,) = server.forks()
    caller.send_signal(by)
    assert caller.wait(20) == -by
    assert eventually(lambda: not fork.is_running())
    assert server.call("print('next')").communicate()[0] == "next\n"


def test_a_fork_that_is_killed_is_a_failure(server):
    caller = server.call("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    said = caller.communicate()[1]
    assert said.startswith("error: the process that measured was killed")
    assert caller.returncode == 2


def test_it_ends_with_who_started_it_but_its_forks_go_on(server):
    caller = server.call("import time; print('here', flush=True); time.sleep(1); print('done')")
    assert caller.stdout.readline() == "here\n"
    server.process.stdin.close()
    assert server.process.wait(20) == 0
    assert caller.communicate()[0] == "done\n"
    assert caller.returncode == 0


def test_where_nobody_listens_the_command_runs_by_itself(server):
    server.process.stdin.close()
    server.process.wait(20)
    assert server.call("print('warm')").communicate()[0] == "by itself\n"


def test_another_user_is_not_asked(server, monkeypatch):
    monkeypatch.setenv(warm.PLACE, server.place)
    monkeypatch.setattr(os, "getuid", lambda: 65534)
    warm.hand_over(["print('served')"])  # which would end this process


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_another_user_is_not_served(server):
    code = (
        "import os, socket, sys; os.setuid(65534); caller = socket.socket(socket.AF_UNIX);"
        "caller.connect(chr(0) + sys.argv[1]); print(caller.recv(1))"
    )
    words = [sys.executable, "-c", code, server.place]
    assert subprocess.run(words, capture_output=True, text=True, timeout=20).stdout == "b''\n"
    assert server.call("print('served')").communicate()[0] == "served\n"


def test_no_process_is_forked_that_may_use_a_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert warm.possible()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert not warm.possible()
