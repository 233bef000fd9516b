"""Record the hash of each file of a model, once you trust what was downloaded."""

import argparse
from pathlib import Path

from kvbudget.errors import UserError
from kvbudget.sources import formats, lock


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--model", required=True, help="key under `models:`")
    parser.add_argument("--dir", required=True, type=Path, help="where the model lies")
    parser.add_argument("--lock", required=True, type=Path, help="workflow/models.lock.yaml")


def run(args: argparse.Namespace) -> None:
    """Record them, whatever was recorded before."""
    if not args.dir.is_dir():
        raise UserError(f"model {args.model}: {args.dir} does not exist; download it first")
    formats.check_formats(args.model, args.dir)
    lock.update(args.lock, args.model, lock.hash_files(args.dir))
