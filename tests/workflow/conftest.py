import fcntl
import shutil
from pathlib import Path

import pytest
from pipeline import copy_repository, paths, snakemake


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id) -> Path:
    """A copy of the repository with the tiny study finished in it, made once for all processes of
    the tests and changed by none."""
    own = tmp_path_factory.getbasetemp()
    copy = (own if worker_id == "master" else own.parent) / "finished"
    with copy.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (copy / "paper/tiny/main.pdf").exists():
            copy_repository(copy)
            result = snakemake(copy)
            assert result.returncode == 0, result.stdout
            said = f"The paper of study 'tiny' is {copy / 'paper/tiny/main.pdf'}"
            assert said in result.stdout
    return copy


@pytest.fixture(scope="session")
def repo(finished, tmp_path_factory) -> Path:
    """The same as a copy of this process, which leaves it as it was but for files of its own."""
    copy = tmp_path_factory.mktemp("repo")
    shutil.copytree(finished, copy, symlinks=True, dirs_exist_ok=True)
    return copy


@pytest.fixture(scope="session")
def made(repo) -> dict[str, str]:
    """Paths of the tiny study's cells and calibrations by their place."""
    return paths(repo)
