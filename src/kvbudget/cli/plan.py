"""Check a study and say what it will cost; nothing is downloaded or computed."""

import argparse
from pathlib import Path

from kvbudget.cli import study_argument
from kvbudget.study import forecast
from kvbudget.study.published import IGNORE


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    study_argument.add(parser)


def run(args: argparse.Namespace) -> None:
    """Print the forecast."""
    print(forecast.report(study_argument.load(args, IGNORE), Path("results/models")))
