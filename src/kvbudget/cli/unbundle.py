"""Put someone's finished cells into results/."""

import argparse
from pathlib import Path

from kvbudget.study import bundle, published


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("archive", type=Path)
    parser.add_argument(
        "--published",
        action="store_true",
        help="into the folder beside it, where the workflow looks for published records",
    )


def run(args: argparse.Namespace) -> None:
    """Unpack it."""
    if args.published:
        published.unpack_beside(args.archive)
        return
    study, cells = bundle.unpack(args.archive)
    print(f"{cells} cells of study {study}; build its paper with `make paper STUDY={study}`")
