"""The study that a command is about, as people name it."""

import argparse

from kvbudget.study.config import file_of, read
from kvbudget.study.expand import expand
from kvbudget.study.plan import DEFAULT_COMMAND, Study


def add(parser: argparse.ArgumentParser) -> None:
    """Let a command take a study."""
    parser.add_argument(
        "study",
        nargs="?",
        default="default",
        help="name of a file in workflow/studies/, or the path of one of your own",
    )


def load(args: argparse.Namespace) -> Study:
    """The study, checked and expanded."""
    file = file_of(args.study)
    overlay = [] if file is None else ["--configfile", str(file)]
    command, *options = DEFAULT_COMMAND
    return expand(read(args.study), command=[command, *overlay, *options])
