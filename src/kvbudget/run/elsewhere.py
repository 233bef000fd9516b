"""Where the Python is that measures with libraries of others. Imports no torch."""

import os
from pathlib import Path

from kvbudget.errors import UserError

#: Names that Python, where it is not the one that `make peers` makes.
GIVEN = "KVBUDGET_PEERS"
_MADE = Path(".venv-peers/bin/python")


def python() -> Path:
    """The Python of the peers' environment.

    Raises:
        UserError: there is none.
    """
    path = Path(os.environ.get(GIVEN, _MADE))
    if not path.is_file():
        raise UserError(
            f"{path} is not there, and method 'kvpress' is measured with it; make peers makes it, "
            f"or {GIVEN} names the python of an environment from workflow/envs/peers.yaml"
        )
    return path
