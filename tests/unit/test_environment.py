"""The record of the machine, its warnings and requirements."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvbudget.errors import UserError
from kvbudget.run import environment


@pytest.fixture(scope="module")
def found() -> dict:
    return environment.describe(Path.cwd())


def test_it_describes_this_machine(found):
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cpu"]["model"]
    assert found["cpu"]["usable"] >= 1
    assert found["memory_bytes"] > 2**28
    assert found["disk_free_bytes"] > 0
    assert set(found["versions"]) == set(environment.PACKAGES)
    json.dumps(found)


def test_warnings_name_what_is_missing_and_the_remedy(found):
    poor = found | {
        "memory_bytes": 2**30,
        "disk_free_bytes": 2**30,
        "tex": {"latexmk": None, "pdflatex": "/usr/bin/pdflatex", "bibtex": None},
        "cuda": {"version": None, "devices": []},
        "cpu": found["cpu"] | {"fast_bfloat16": False},
    }
    memory, disk, tex, cuda, bfloat16 = environment.warnings(poor)
    assert memory.startswith("1.0 GiB of memory")
    assert disk.startswith("1.0 GiB of disk")
    assert "latexmk, bibtex" in tex
    assert "apt-get install" in tex
    assert "no CUDA device" in cuda
    assert "dtype: float32" in bfloat16
    rich = poor | {
        "memory_bytes": 2**36,
        "disk_free_bytes": 2**40,
        "tex": dict.fromkeys(environment.TEX, "/usr/bin/x"),
        "cuda": {"version": "13.0", "devices": [{"name": "H100", "memory_bytes": 2**36}]},
    }
    assert environment.warnings(rich) == []
    environment.requirements(rich, cuda=True, tex=True, disk=100)


def test_a_requirement_that_is_not_met_stops(found):
    poor = found | {"tex": {"latexmk": None}, "disk_free_bytes": 2**30}
    poor |= {"cuda": {"version": None, "devices": []}}
    with pytest.raises(UserError, match=r"no CUDA device .* run it on a machine with a GPU"):
        environment.requirements(poor, cuda=True, tex=True, disk=0)
    with pytest.raises(UserError, match="latexmk is missing"):
        environment.requirements(poor, cuda=False, tex=True, disk=0)
    with pytest.raises(UserError, match=r"1\.0 GiB of disk are free, 2 are required"):
        environment.requirements(poor, cuda=False, tex=False, disk=2)
    environment.requirements(poor, cuda=False, tex=False, disk=1)


def test_command_line(tmp_path):
    command = [sys.executable, "-m", "kvbudget", "environment", "--out", str(tmp_path / "e.json")]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads((tmp_path / "e.json").read_text())
    assert "torch" in found["versions"]
    assert "disk_free_bytes" not in found  # else two archives of one machine would not go together
    refused = subprocess.run([*command, "--require-disk", "1e9"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: ")
