"""Every number of the paper's prose as a macro of LaTeX: numbers.tex."""

import argparse
from pathlib import Path

from kvbudget.cli import of_study
from kvbudget.paper import numbers, registry


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    of_study.arguments(parser, "numbers.tex")


def run(args: argparse.Namespace) -> None:
    """Write the numbers."""
    src = of_study.open_source(args, registry.NUMBERS)
    of_study.write(args.out or Path("numbers.tex"), numbers.text(src))
