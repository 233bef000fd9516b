"""Arguments of the jobs that run a model on a text. No command itself."""

import argparse
import json
from pathlib import Path


def arguments(parser: argparse.ArgumentParser, spec: str) -> None:
    """Declare what is asked for (`spec` says in words of what), the model, the text and the result:
    the fields of `kvbudget.run.job.Job`."""
    parser.add_argument("--spec", required=True, type=json.loads, help=f"{spec}, as JSON")
    parser.add_argument("--model-identity", required=True, help="of the model that is meant")
    parser.add_argument("--model-dir", required=True, type=Path)
    parser.add_argument("--verified", required=True, type=Path, help="of the model")
    parser.add_argument("--text", required=True, type=Path, help="the haystack")
    parser.add_argument("--out", required=True, type=Path, help="file or folder to write")
