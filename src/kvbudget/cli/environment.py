"""Say what this machine is: versions, devices, memory, disk and TeX, and what of it will not do."""

import argparse
import json
import sys
from pathlib import Path

from kvbudget.run import environment


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--out", type=Path, help="JSON file to write; printed without it")
    parser.add_argument("--require-cuda", action="store_true", help="fail without a GPU")
    parser.add_argument("--require-tex", action="store_true", help="fail without TeX")
    parser.add_argument(
        "--require-disk", type=float, default=0, metavar="GIB", help="fail with less free space"
    )


def run(args: argparse.Namespace) -> None:
    """Write or print it, with warnings on stderr; raise `UserError` for what is required."""
    place = args.out.parent if args.out else Path()
    place.mkdir(parents=True, exist_ok=True)
    found = environment.describe(place)
    found["warnings"] = environment.warnings(found)
    for line in found["warnings"]:
        print(f"warning: {line}", file=sys.stderr)
    environment.requirements(
        found, cuda=args.require_cuda, tex=args.require_tex, disk=args.require_disk
    )
    # It changes by the minute; archives of two studies must agree on the machine they are from.
    del found["disk_free_bytes"]
    text = json.dumps(found, indent=1) + "\n"
    if args.out:
        args.out.write_text(text)
    else:
        print(text, end="")
