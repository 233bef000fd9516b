"""Check a study and say what it will cost; nothing is downloaded or computed."""

import argparse
from pathlib import Path

from kvbudget.cli import study_argument
from kvbudget.study import forecast
from kvbudget.study.published import EXTEND, IGNORE, unpack


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    study_argument.add(parser)
    parser.add_argument(
        "--times-of",
        metavar="STUDY",
        help="another study, whose finished or published cells tell how long one takes",
    )


def run(args: argparse.Namespace) -> None:
    """Print the forecast."""
    timed = None
    if args.times_of:
        timed = study_argument.load(argparse.Namespace(study=args.times_of, published=EXTEND))
        unpack(timed)
    print(forecast.report(study_argument.load(args, IGNORE), Path("results/models"), timed))
