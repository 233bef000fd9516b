"""Read the contexts of a place once for all its cells, into a folder that is removed after use."""

import argparse
import json
from pathlib import Path

from kvbudget.run.prefill import Prefills, run_prefills


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--spec", required=True, type=json.loads, help="the place, as JSON")
    parser.add_argument("--model-identity", required=True, help="of the model that is meant")
    parser.add_argument("--model-dir", required=True, type=Path)
    parser.add_argument("--verified", required=True, type=Path, help="of the model")
    parser.add_argument("--text", required=True, type=Path, help="the haystack")
    parser.add_argument("--disk-gb", required=True, type=float, help="most that all places take")
    parser.add_argument("--store", required=True, type=Path, help="folder of all places")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")


def run(args: argparse.Namespace) -> None:
    """Write the folder."""
    run_prefills(Prefills(**vars(args)))
