"""Does a model work with our caches? A cache that keeps all must give the model's own logits."""

import argparse
from pathlib import Path

from kvbudget.run import check


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("model", type=Path, help="directory of a model in safetensors")


def run(args: argparse.Namespace) -> None:
    """Say that it works, or raise `UserError`."""
    print(check.check(args.model))
