"""Time and size of the caches, as ratios within one run on one machine."""

import argparse
from pathlib import Path

from kvbudget.run import bench
from kvbudget.run.files import write_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--model-dir", required=True, type=Path)
    parser.add_argument("--verified", required=True, type=Path, help="of the model")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    tokens = {"nargs": "*", "type": int, "metavar": "TOKENS"}
    parser.add_argument("--decode-at", default=[4096, 8000], **tokens)
    parser.add_argument("--prefill-at", default=[4096], **tokens)
    parser.add_argument("--memory-at", default=[2048, 4096, 8192], **tokens)
    parser.add_argument("--rounds", type=int, default=15, help="of decode steps")
    parser.add_argument("--out", required=True, type=Path)


def run(args: argparse.Namespace) -> None:
    """Write what is known so far after each measurement, and print the ratios at the end."""
    lengths = bench.Lengths(args.decode_at, args.prefill_at, args.memory_at, args.rounds)
    results: dict = {}
    for results in bench.bench(args.model_dir, args.verified, args.dtypes, lengths):
        write_json(args.out, {"schema": 2, "model": args.model_dir.name, "results": results})
    print(bench.table(results))
