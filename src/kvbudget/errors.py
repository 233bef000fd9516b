"""Errors a user can act on, and how a command line shows them."""

import errno
import os
import sys
from collections.abc import Callable

_FULL = "free some space and run it again: what is finished stays"
_CLOSED = "see that you may write there and run it again: what is finished stays"
#: What to do where the file system refuses to write.
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _CLOSED,
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
}


class UserError(Exception):
    """Bad input. The message names the thing that is wrong and the remedy, in one line."""


def run_cli(main: Callable[[], None]) -> None:
    """Run a command; a `UserError` becomes one line on stderr and exit status 2.

    So does a disk that is full or closed to writing, which no check beforehand can rule out.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # who reads has had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        place = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror}{place}; {_REMEDIES[error.errno]}", file=sys.stderr)
        sys.exit(2)
