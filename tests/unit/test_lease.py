"""Commands that run at once on one machine see a GPU each. The lease needs no GPU to be tested."""

import os
import subprocess
import sys

import pytest

from kvbudget import cli
from kvbudget.run.lease import visible


def start(command: str, tmp_path, gpus: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "kvbudget", "lease", "bash", "-c", command],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": gpus, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_commands_get_a_gpu_each_and_a_kill_gives_it_back(tmp_path):
    show = "echo $CUDA_VISIBLE_DEVICES; exec cat"  # cat: until its input ends
    holders = [start(show, tmp_path, "2,GPU-5a") for _ in range(2)]
    held = [holder.stdout.readline().strip() for holder in holders]
    assert sorted(held) == ["2", "GPU-5a"]
    third = start("echo $CUDA_VISIBLE_DEVICES", tmp_path, "2,GPU-5a")
    assert third.stderr.readline() == "waiting for one of the GPUs 2, GPU-5a\n"
    holders[1].kill()
    assert third.communicate(timeout=20)[0].strip() == held[1]
    holders[0].communicate(timeout=20)
    holders[1].communicate(timeout=20)


@pytest.mark.parametrize("gpus", ["", "3"])
def test_where_nothing_is_to_choose_the_command_just_runs(tmp_path, gpus):
    ran = start("echo =$CUDA_VISIBLE_DEVICES; exit 7", tmp_path, gpus)
    assert ran.communicate(timeout=20)[0] == f"={gpus}\n"
    assert ran.returncode == 7
    assert not list(tmp_path.iterdir())


def test_without_the_variable_the_devices_of_the_driver_count(tmp_path):
    for name in ("nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible({}, tmp_path) == ["2", "10"]
    assert visible({"CUDA_VISIBLE_DEVICES": " 1, 0 "}, tmp_path) == ["1", "0"]


@pytest.mark.parametrize(
    ("command", "said"),
    [([], "error: which command?"), (["kvbudget-absent"], "error: there is no command 'kvbudget")],
)
def test_a_command_that_cannot_run_is_named(command, said, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["lease", *command])
    assert capsys.readouterr().err.startswith(said)
