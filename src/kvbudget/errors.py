"""Errors a user can act on, and how a command line shows them."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message names the thing that is wrong and the remedy, in one line."""


def run_cli(main: Callable[[], None]) -> None:
    """Run a command; a `UserError` becomes one line on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
