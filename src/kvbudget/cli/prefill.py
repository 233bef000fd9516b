"""Read the contexts of a place once for all its cells, into a folder that is removed after use."""

import argparse
from pathlib import Path

from kvbudget.cli import of_model
from kvbudget.run.prefill import Prefills, run_prefills


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    of_model.arguments(parser, "the place")
    parser.add_argument("--disk-gb", required=True, type=float, help="most that all places take")
    parser.add_argument("--store", required=True, type=Path, help="folder of all places")


def run(args: argparse.Namespace) -> None:
    """Write the folder."""
    run_prefills(Prefills(**vars(args)))
