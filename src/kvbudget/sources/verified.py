"""What the check of a model has found: the small file that stands for its weights."""

import json
from pathlib import Path

from kvbudget.errors import UserError


def read(path: Path, identity: str) -> dict:
    """What `kvbudget verify-model` wrote.

    Args:
        path: the file.
        identity: of the model that is wanted.

    Raises:
        UserError: it tells of another model, which lies in the place of the one that is wanted.
    """
    verified = json.loads(path.read_text(encoding="utf-8"))
    if verified["identity"] != identity:
        key = verified["model"]
        raise UserError(
            f"{path} is of another model than the configuration now means by {key!r}; delete "
            f"{path.parent / key} and run it again"
        )
    return verified
