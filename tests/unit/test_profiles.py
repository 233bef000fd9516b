"""The profile for schedulers without a plugin asks PBS for the state of a job."""

import os
import subprocess
from pathlib import Path

import pytest

STATUS = Path(__file__).parents[2] / "profiles/cluster-generic/status.sh"


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ("    job_state = Q", "running"),
        ("    job_state = R\n    exec_host = n1/0", "running"),
        ("    job_state = F\n    Exit_status = 0", "success"),
        ("    job_state = F\n    Exit_status = 271", "failed"),
        ("    job_state = F", "failed"),  # deleted before it started
        ("", "running"),  # PBS does not answer at the moment
    ],
)
def test_the_state_of_a_pbs_job(tmp_path, fields, state):
    """`qstat -xf` prints a job as indented `key = value` lines; here a script stands for it."""
    qstat = tmp_path / "qstat"
    qstat.write_text(
        "#!/bin/sh\n[ \"$*\" = '-xf 7.server' ] || exit 1\n"
        f"cat <<'END'\nJob Id: 7.server\n{fields}\nEND\n"
    )
    qstat.chmod(0o755)
    asked = subprocess.run(
        [STATUS, "7.server"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert asked.stdout == f"{state}\n", asked.stderr
