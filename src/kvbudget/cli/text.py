"""Make a haystack: a text of one passage a line, and beside it KEY.verified.json, the hash, lines
and words that later results refer to."""

import argparse
import json
from pathlib import Path

from kvbudget.sources.text import build


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--spec", required=True, type=json.loads, help="haystack entry, as JSON")
    parser.add_argument("--out", required=True, type=Path, help="text file to write")


def run(args: argparse.Namespace) -> None:
    """Write both files."""
    build(args.spec, args.out)
