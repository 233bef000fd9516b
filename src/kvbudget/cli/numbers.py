"""Every number of the paper's prose as a macro of LaTeX: numbers.tex."""

import argparse
import json
from pathlib import Path

from kvbudget.cli import of_study
from kvbudget.errors import UserError
from kvbudget.paper import numbers, registry


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    of_study.arguments(parser, "numbers.tex")
    parser.add_argument("--environment", type=Path, required=True, help="what the machine is")


def run(args: argparse.Namespace) -> None:
    """Write the numbers."""
    try:
        environment = json.loads(args.environment.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {args.environment} ({error}); "
            f"make it with `snakemake --cores 1 {args.environment}`"
        ) from error
    src = of_study.open_source(args, registry.NUMBERS)
    of_study.write(args.out or Path("numbers.tex"), numbers.text(src, environment))
