"""Refuse a paper whose prose or generated files do not follow from the CSV files."""

import argparse
from pathlib import Path

from kvbudget.cli import of_study
from kvbudget.paper.check import check


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("tables", type=Path, nargs="*", help="the generated tables")
    parser.add_argument("--numbers", type=Path, required=True, help="numbers.tex")
    parser.add_argument("--paper", type=Path, default="paper", help="folder of main.tex")
    parser.add_argument("--csv", type=Path, required=True, help="folder of the CSV files")
    parser.add_argument("--out", type=Path, required=True, help="file for the report")


def run(args: argparse.Namespace) -> None:
    """Write what was checked, or raise `UserError` with all that is wrong."""
    of_study.write(args.out, check(args.paper, args.numbers, args.tables, args.csv))
