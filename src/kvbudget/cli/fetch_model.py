"""Get a model onto disk: of a repository or a folder, the files that transformers reads."""

import argparse
import json
from pathlib import Path

from kvbudget.sources.download import download
from kvbudget.sources.registry import parse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--model", required=True, help="key under `models:`")
    parser.add_argument("--spec", required=True, type=json.loads, help="its entry, as JSON")
    parser.add_argument("--out", required=True, type=Path, help="directory to make")


def run(args: argparse.Namespace) -> None:
    """Make the directory, complete or not at all."""
    download(args.model, parse(args.model, args.spec), args.out)
