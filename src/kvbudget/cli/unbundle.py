"""Put someone's finished cells into results/."""

import argparse
from pathlib import Path

from kvbudget.study import bundle


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("archive", type=Path)


def run(args: argparse.Namespace) -> None:
    """Unpack it."""
    study, cells = bundle.unpack(args.archive)
    print(f"{cells} cells of study {study}; build its paper with `make paper STUDY={study}`")
