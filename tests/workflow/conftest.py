from pathlib import Path

import pytest
from pipeline import copy_repository, snakemake


@pytest.fixture(scope="session")
def repo(tmp_path_factory) -> Path:
    """A copy of the repository with the tiny study finished in it."""
    copy = tmp_path_factory.mktemp("repo")
    copy_repository(copy)
    result = snakemake(copy)
    assert result.returncode == 0, result.stdout
    assert f"The paper of study 'tiny' is {copy / 'paper/tiny/main.pdf'}" in result.stdout
    return copy
