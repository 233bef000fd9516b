"""One table of the paper as LaTeX. Without a name: which tables there are."""

import argparse
import importlib
from pathlib import Path

from kvbudget.cli import of_study
from kvbudget.paper import registry


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("name", nargs="?", help="such as statistics, or experiments/NAME")
    of_study.arguments(parser, "NAME.tex")


def run(args: argparse.Namespace) -> None:
    """Write the table, or list all."""
    if args.name is None:
        print(registry.listing(registry.TABLES))
        return
    made, experiment = registry.table(args.name)
    src = of_study.open_source(args, made)
    text = importlib.import_module(made.module).text(src, *experiment)
    of_study.write(args.out or Path(f"{args.name.rpartition('/')[2]}.tex"), text)
