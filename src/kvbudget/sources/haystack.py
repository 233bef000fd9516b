"""A haystack as `kvbudget.sources.text` leaves it on disk: one passage a line."""

from pathlib import Path

from kvbudget.errors import UserError


def read_passages(path: str | Path) -> list[str]:
    """The passages of a haystack, in order.

    Raises:
        UserError: there is no such file, or nothing in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such haystack; make it with kvbudget text")
    passages = path.read_text(encoding="utf-8").splitlines()
    if not passages:
        raise UserError(f"{path} holds no text; delete it and make it again")
    return passages
