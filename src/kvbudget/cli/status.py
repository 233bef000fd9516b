"""How far a study is, also while it runs."""

import argparse

from kvbudget.cli import study_argument
from kvbudget.study import status


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    study_argument.add(parser)


def run(args: argparse.Namespace) -> None:
    """Print the state of the study."""
    print(status.report(study_argument.load(args)))
