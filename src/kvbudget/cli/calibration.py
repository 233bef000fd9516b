"""Make one calibration of a study."""

import argparse

from kvbudget.cli import of_model
from kvbudget.run.calibrate import Calibration, run_calibration


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--model", required=True, help="key under `models:`")
    of_model.arguments(parser, "`calibration:`")
    parser.add_argument("--code", required=True, help="digest of the code that it runs")
    parser.add_argument(
        "--identity", required=True, help="digest of all that the result depends on"
    )


def run(args: argparse.Namespace) -> None:
    """Write the calibration."""
    run_calibration(Calibration(**vars(args)))
