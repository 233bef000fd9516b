"""A Slurm of one node on this machine, with two GPUs that are device files and nothing more."""

import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "setpriv")

_CONF = """\
ClusterName=local
SlurmctldHost=localhost
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MinJobAge=3600
MailProg=/bin/true
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
# The node has more than this machine does, so that jobs ask for what they would elsewhere.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=localhost CPUs=8 RealMemory=64000 Gres=gpu:2 State=UNKNOWN
PartitionName=other Nodes=localhost Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=localhost MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no Slurm can be started here; None if it can."""
    if os.geteuid() != 0:
        return "starting a Slurm needs root"
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.mknod(f"{folder}/device", stat.S_IFCHR | 0o600, os.makedev(195, 0))
        except OSError as error:
            return f"no device file can be made here ({error.strerror})"
    absent = [name for name in NEEDED if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)} (make test-slurm does)" if absent else None


@contextmanager
def local_slurm(home: Path) -> Iterator[dict[str, str]]:
    """The environment in which sbatch and the like use the Slurm that runs meanwhile."""
    for name in ("state", "spool", "dev", "bin"):
        (home / name).mkdir()
    home.chmod(0o755)  # munge asks for it
    key = home / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    ports = {"controller_port": _free_port(), "node_port": _free_port()}
    (home / "slurm.conf").write_text(_CONF.format(home=home, **ports))
    for number in range(2):
        subprocess.run(["mknod", home / f"dev/nvidia{number}", "c", "195", str(number)], check=True)
    (home / "gres.conf").write_text(f"NodeName=localhost Name=gpu File={home}/dev/nvidia[0-1]\n")
    # Snakemake's job step forgets where the configuration is.
    srun = home / "bin/srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={home}/slurm.conf exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)
    environment = os.environ | {
        "SLURM_CONF": f"{home}/slurm.conf",
        "PATH": f"{home}/bin:{os.environ['PATH']}",
    }
    munge = [f"--{name}={home}/munge.{name}" for name in ("socket", "pid-file", "seed-file")]
    munge += [f"--key-file={key}", f"--log-file={home}/munge.log", "--force"]
    with ExitStack() as running:
        daemons = [["munged", "--foreground", *munge], ["slurmctld", "-D"], ["slurmd", "-D"]]
        daemons[2] += ["-N", "localhost"]
        for command in daemons:
            running.enter_context(_daemon(command, home, environment))
        _wait_for("idle", ["sinfo", "--noheader", "-o", "%T"], environment, home)
        try:
            yield environment
        finally:
            subprocess.run(["scancel", "--user", "root"], env=environment, check=False)
            _wait_for("", ["squeue", "--noheader"], environment, home)


@contextmanager
def _daemon(command: list[str], home: Path, environment: dict[str, str]) -> Iterator[None]:
    log = home / f"{command[0]}.out"
    with log.open("wb") as out:
        # The kernel ends it even if the tests are killed.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _wait_for(answer: str, command: list[str], environment: dict[str, str], home: Path) -> None:
    for _ in range(60):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode == 0 and set(done.stdout.split()) == set(answer.split()):
            return
        time.sleep(0.5)
    logs = "\n".join(log.read_text(errors="replace")[-2000:] for log in home.glob("*.out"))
    raise AssertionError(f"{command} says {done.stdout}{done.stderr}\n{logs}")
