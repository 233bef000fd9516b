"""What the tests on a GPU share: the tiny models of the unit tests, and a GPU."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The GPU that is tested; without one there is nothing to say here, and that is a failure."""
    if not torch.cuda.is_available():
        pytest.fail("there is no CUDA device; these tests are for a machine with one (make gpu)")
    return torch.device("cuda")
