"""Where the Python is that measures with libraries of others. Imports no torch."""

import json
import os
import subprocess
from pathlib import Path

from kvbudget.errors import UserError

#: Names that Python, where it is not the one that `make peers` makes.
GIVEN = "KVBUDGET_PEERS"
_MADE = Path(".venv-peers/bin/python")
_VERSIONS = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""


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


def versions(*names: str) -> dict[str, str] | None:
    """Versions of libraries in the peers' environment; None if there is no such environment."""
    try:
        path = python()
    except UserError:
        return None
    command = [path, "-c", _VERSIONS, *names]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
