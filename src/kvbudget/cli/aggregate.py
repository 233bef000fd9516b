"""Finished cells of a study in, tidy CSV files out; or one error that says what is wrong."""

import argparse
from pathlib import Path

from kvbudget.analysis.aggregate import aggregate
from kvbudget.study.plan import load_study


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--study", type=Path, required=True, help="the plan")
    parser.add_argument("--out", type=Path, required=True, help="folder of the CSV files")
    parser.add_argument("--draft", action="store_true", help="let cells be missing")


def run(args: argparse.Namespace) -> None:
    """Write them."""
    aggregate(load_study(args.study), args.out, args.draft)
