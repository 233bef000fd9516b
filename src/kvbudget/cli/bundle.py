"""Archive the finished cells of a study, with all they rest on but the weights. Cells that are
published already and were not measured anew are in it, too."""

import argparse
from pathlib import Path

from kvbudget.cli import study_argument
from kvbudget.study import bundle, published


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    study_argument.add(parser)
    parser.add_argument("--out", type=Path, help="by default results/STUDY.tar.xz")


def run(args: argparse.Namespace) -> None:
    """Write it."""
    study = study_argument.load(args, published.EXTEND)
    published.unpack(study)
    out = args.out or Path(f"results/{study.name}.tar.xz")
    cells, planned = bundle.pack(study, out)
    print(f"{out}: {cells} of {planned} cells, sha256 {bundle.sha256(out.read_bytes())}")
