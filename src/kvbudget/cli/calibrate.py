"""Fit Head-Aware to a model, once: what its heads do, what they need, and what scores tokens. Pass
the record, read as JSON, to make_cache as calibration=."""

import argparse
from pathlib import Path

import yaml

from kvbudget.errors import UserError
from kvbudget.run.calibrate import calibrate_model
from kvbudget.run.files import write_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("model", type=Path, help="directory of a model in safetensors")
    parser.add_argument("--text", required=True, type=Path, help="long text, a passage a line")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="options of `calibration:` in a study, such as scorer_contexts=8 contexts=4",
    )


def run(args: argparse.Namespace) -> None:
    """Write the calibration."""
    spec = {}
    for word in args.set:
        key, given, value = word.partition("=")
        if not given:
            raise UserError(f"--set takes KEY=VALUE, not {word!r}")
        spec[key] = yaml.safe_load(value)
    found = calibrate_model(args.model, args.text, spec)
    write_json(args.out, found)
    print(f"{args.out}: make_cache(model, 'head-aware', budget, calibration=json.load(open(...)))")
    told = ", ".join(
        f"{kept:.0%} at {share}" for share, kept in found["scorer"]["group"]["kept"].items()
    )
    print(f"fit: of what the best tokens of a held-out text score, the predicted best have {told}")
