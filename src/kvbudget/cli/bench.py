"""Time and size of the caches, as ratios within one run on one machine."""

import argparse
from pathlib import Path

from kvbudget.paper.bench import table
from kvbudget.run.bench.measure import Lengths, measure
from kvbudget.run.files import write_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--model-dir", required=True, type=Path)
    parser.add_argument("--verified", required=True, type=Path, help="of the model")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    tokens = {"nargs": "*", "type": int, "metavar": "TOKENS"}
    parser.add_argument(
        "--lengths", default=[1000, 8000, 32000], help="before a decode step", **tokens
    )
    parser.add_argument("--prefill-at", default=[4096], help="of a prompt", **tokens)
    parser.add_argument(
        "--memory-at",
        default=[2048, 8192],
        help="of a prompt that is read in pieces, in a process of its own",
        **tokens,
    )
    parser.add_argument(
        "--profile-at", default=[8000], help="before a step that is taken apart", **tokens
    )
    parser.add_argument("--rounds", type=int, default=15, help="of decode steps")
    parser.add_argument(
        "--out", required=True, type=Path, help="JSON; a CSV file and a figure (SVG) lie beside it"
    )


def run(args: argparse.Namespace) -> None:
    """Write what is known so far after each measurement, and print tables at the end."""
    lengths = Lengths(args.lengths, args.prefill_at, args.memory_at, args.profile_at, args.rounds)
    found: dict = {}
    for found in measure(args.model_dir, args.verified, args.dtypes, lengths):
        write_json(args.out, found)
    table.write_csv(found, args.out.with_suffix(".csv"))
    from kvbudget.paper.bench import figure  # matplotlib takes its time

    figure.write(found, args.out.with_suffix(".svg"))
    print(table.report(found))
