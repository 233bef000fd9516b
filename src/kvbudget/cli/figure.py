"""One figure of the paper as a vector PDF. Without a name: which figures there are."""

import argparse
import importlib
from pathlib import Path

from kvbudget.cli import of_study
from kvbudget.paper import registry


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("name", nargs="?", help="such as quality")
    of_study.arguments(parser, "NAME.pdf")


def run(args: argparse.Namespace) -> None:
    """Write the figure, or list all."""
    if args.name is None:
        print(registry.listing(registry.FIGURES))
        return
    made = registry.figure(args.name)
    src = of_study.open_source(args, made)
    from kvbudget.paper.plots import style  # matplotlib takes its time, and the list needs none

    style.save(importlib.import_module(made.module), src, args.out or Path(f"{args.name}.pdf"))
