"""Run a command on a GPU of its own: where several are visible, the first that no other command
holds; where there is nothing to choose, the command just runs."""

import argparse

from kvbudget.errors import UserError
from kvbudget.run import lease


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("command", nargs=argparse.REMAINDER, help="with its own arguments")


def run(args: argparse.Namespace) -> None:
    """Become the command."""
    if not args.command:
        raise UserError("which command? kvbudget lease COMMAND [arguments]")
    lease.run(args.command)
