"""Make one calibration of a study."""

import argparse
import json
from pathlib import Path

from kvbudget.run.calibrate import Calibration, run_calibration


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--model", required=True, help="key under `models:`")
    parser.add_argument("--spec", required=True, type=json.loads, help="`calibration:`, as JSON")
    parser.add_argument("--code", required=True, help="digest of the code that it runs")
    parser.add_argument(
        "--identity", required=True, help="digest of all that the result depends on"
    )
    parser.add_argument("--model-identity", required=True, help="of the model that is meant")
    parser.add_argument("--model-dir", required=True, type=Path)
    parser.add_argument("--verified", required=True, type=Path, help="of the model")
    parser.add_argument("--text", required=True, type=Path, help="the haystack")
    parser.add_argument("--out", required=True, type=Path)


def run(args: argparse.Namespace) -> None:
    """Write the calibration."""
    run_calibration(Calibration(**vars(args)))
