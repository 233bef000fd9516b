"""Cells of the tiny study through the profile for Slurm, on a real Slurm that is started here."""

import json
import re
import subprocess
import sys
import time

import pytest
from local_slurm import local_slurm, missing
from pipeline import TINY, copy_repository, paths

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

CELLS = "results/cells/tiny-llama/niah_single/L800"
SOON = ("--slurm-init-seconds-before-status-checks", "3")
CALIBRATION = "results/calibrations/tiny-llama/default.json"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with local_slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    copy = tmp_path_factory.mktemp("repo")
    copy_repository(copy)
    return copy


@pytest.fixture(scope="module")
def made(repo):
    return paths(repo)


def submit(repo, environment, profile: str, *arguments: str) -> set[tuple[str, str]]:
    """Run Snakemake to a good end; which device each job had, as (job, device)."""
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--workflow-profile",
        f"profiles/{profile}",
    ]
    command += ["--configfile", TINY, "--seconds-between-status-checks", "3", *arguments]
    own = {k: v for k, v in environment.items() if k != "PYTHONPATH"} | {"SBATCH_PARTITION": "gpu"}
    log, devices = repo / "snakemake.out", set()
    with (
        log.open("w") as out,
        subprocess.Popen(
            command, cwd=repo, env=own, stdout=out, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            while process.poll() is None:
                # Slurm forgets the device when the job ends.
                devices |= {(job["JobId"], job.get("GRES")) for job in jobs_of(environment)}
                time.sleep(1)
        finally:
            process.kill()
    assert process.returncode == 0, log.read_text()
    return {(job, device) for job, device in devices if device}


def ask(command: str, environment) -> str:
    done = subprocess.run(command.split(), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def jobs_of(environment) -> list[dict[str, str]]:
    """All jobs that Slurm remembers, each with its fields."""
    shown = ask("scontrol show jobs --detail --oneliner", environment)
    return [
        dict(re.findall(r"(\S+?)=(\S*)", line))
        for line in shown.splitlines()
        if line[:6] == "JobId="
    ]


def test_account_and_partition_come_from_the_environment(slurm, repo):
    command = [sys.executable, "-m", "snakemake", "--workflow-profile", "profiles/slurm"]
    planned = subprocess.run(
        [*command, "--configfile", TINY, "--dry-run"],
        cwd=repo,
        env=slurm | {"SBATCH_ACCOUNT": "group-7", "SBATCH_PARTITION": "gpu"},
        capture_output=True,
        text=True,
    )
    assert "slurm_account=group-7, slurm_partition=gpu" in planned.stdout + planned.stderr


def test_cells_and_their_calibration_through_slurm(slurm, repo, made):
    cells = [made[f"{CELLS}/h2o/B20p.json"], made[f"{CELLS}/head-aware/B20p.json"]]
    devices = submit(repo, slurm, "slurm", *SOON, *cells)
    for cell in cells:
        assert len(json.loads((repo / cell).read_text())["samples"]) == 2
    assert (repo / made[CALIBRATION]).exists()
    # A job's log is where a run without Slurm has it.
    log = repo / cells[0].replace("results/cells", "results/tiny/logs/cells").replace(
        ".json", ".log"
    )
    assert "2/2" in log.read_text()

    # Everything else is done by Snakemake itself.
    assert ask("squeue --noheader --states all -o %T", slurm).split() == ["COMPLETED"] * 3
    jobs = jobs_of(slurm)
    for job in jobs:
        assert job["Partition"] == "gpu"
        assert job["NumCPUs"] == "4"
        assert job["TresPerJob"] == "gres:gpu:1"
        assert 3000 < int(job["MinMemoryNode"].removesuffix("M")) < 3100
        assert job["TimeLimit"] == "04:00:00"
    # The cell that needs no calibration ran beside it, on another device.
    assert len(devices) == 3
    assert {device for _, device in devices} == {"gpu:1(IDX:0)", "gpu:1(IDX:1)"}


def test_a_job_array_at_a_site_that_knows_only_gres(slurm, repo, made):
    cells = [made[f"{CELLS}/full/Bfull.json"], made[f"{CELLS}/streaming-llm/B20p.json"]]
    gres = ["--set-resources", "cell:gpu=0", "cell:gres=gpu:1"]
    devices = submit(repo, slurm, "slurm", *SOON, *cells, *gres, "--slurm-array-jobs", "cell")
    assert all((repo / cell).exists() for cell in cells)
    array = [job for job in jobs_of(slurm) if "ArrayTaskId" in job]
    assert len(array) == 2
    assert {job["JobState"] for job in array} == {"COMPLETED"}
    assert {job["TresPerNode"] for job in array} == {"gres:gpu:1"}
    own = {device for job, device in devices if job in {each["JobId"] for each in array}}
    assert own == {"gpu:1(IDX:0)", "gpu:1(IDX:1)"}


def test_a_scheduler_without_a_plugin(slurm, repo, made):
    """Slurm's commands in place of the profile's."""
    sbatch = (
        "sbatch --parsable --output /dev/null --partition gpu --gpus={resources.gpu}"
        " --mem={resources.mem_mb} --cpus-per-task={threads} --time={resources.runtime}"
    )
    state = repo / "state.sh"
    state.write_text(
        "#!/bin/sh\ncase $(squeue --noheader --states all --format %T --jobs $1) in\n"
        "COMPLETED) echo success ;;\nPENDING|RUNNING|COMPLETING) echo running ;;\n"
        "*) echo failed ;;\nesac\n"
    )
    state.chmod(0o755)
    commands = ["--cluster-generic-submit-cmd", sbatch]
    commands += ["--cluster-generic-status-cmd", str(state)]
    commands += ["--cluster-generic-cancel-cmd", "scancel"]
    cell = made[f"{CELLS}/ha-uniform/B20p.json"]
    devices = submit(repo, slurm, "cluster-generic", *commands, cell)
    assert (repo / cell).exists()
    assert len(devices) == 1
    last = max(jobs_of(slurm), key=lambda job: int(job["JobId"]))
    assert (last["JobState"], last["NumCPUs"], last["TimeLimit"]) == ("COMPLETED", "4", "04:00:00")
