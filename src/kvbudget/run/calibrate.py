"""One calibration: a model, a text and a spec in; one JSON record out."""

import argparse
import json
import time
from pathlib import Path

from kvbudget.api import attach
from kvbudget.calibration.calibrate import calibrate
from kvbudget.calibration.options import DEFAULTS
from kvbudget.errors import run_cli
from kvbudget.run.record import provenance, write_json
from kvbudget.sources.load import load
from kvbudget.sources.text import read_passages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--spec", required=True, type=json.loads)
    parser.add_argument("--code", required=True)
    parser.add_argument("--model-dir", required=True, type=Path)
    parser.add_argument("--verified", required=True, type=Path)
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    started = time.time()
    dtype = {**DEFAULTS, **args.spec}["dtype"]
    model, tokenizer = load(args.model_dir, dtype)
    verified = json.loads(args.verified.read_text())
    calibration = calibrate(attach(model), tokenizer, read_passages(args.text), args.spec)
    write_json(
        args.out,
        {
            "schema": 1,
            "model": args.model,
            "model_sha256": verified["sha256"],
            "spec": args.spec,
            "code": args.code,
            **calibration,
            "provenance": provenance(model, verified["sha256"], started),
        },
    )


if __name__ == "__main__":
    run_cli(main)
