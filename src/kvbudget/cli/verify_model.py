"""Check that a model is the one that was meant, and works; write what calibrations and cells depend
on in place of its weights."""

import argparse
from pathlib import Path

from kvbudget.run.files import write_json
from kvbudget.sources import integrity


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--model", required=True, help="key under `models:`")
    parser.add_argument("--dir", required=True, type=Path, help="where the model lies")
    parser.add_argument("--lock", required=True, type=Path, help="workflow/models.lock.yaml")
    parser.add_argument("--identity", required=True, help="of the model that is meant")
    parser.add_argument("--out", required=True, type=Path, help="verified.json to write")


def run(args: argparse.Namespace) -> None:
    """Write what was found, or raise `UserError`."""
    verified = integrity.verify(args.model, args.dir, args.lock) | {"identity": args.identity}
    write_json(args.out, verified, indent=1)
