"""List the failed jobs of a run, with causes and the commands that run them again."""

import argparse
from pathlib import Path

from kvbudget.study import failures


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--snakemake-log", required=True, type=Path)
    parser.add_argument("--rerun", required=True, help="command with OUTPUT for an output's name")
    parser.add_argument("--out", required=True, type=Path)


def run(args: argparse.Namespace) -> None:
    """Write the page and print a line for each failure."""
    for line in failures.write(args.snakemake_log, args.rerun, args.out):
        print(line)
