"""A cell knows whether the run that started it is still there."""

import subprocess
import sys

import pytest

from kvbudget import UserError
from kvbudget.orphan import check_run


def test_a_cell_stops_once_its_run_is_gone():
    check_run(None)
    run = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    check_run(run.pid)
    run.kill()
    run.wait()
    with pytest.raises(UserError, match="the run that started this cell was killed"):
        check_run(run.pid)
