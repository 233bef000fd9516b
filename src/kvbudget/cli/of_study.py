"""Arguments of the commands that render one file of a study's paper. No command itself."""

import argparse
from pathlib import Path

from kvbudget.errors import UserError
from kvbudget.paper import source
from kvbudget.paper.registry import Made
from kvbudget.paper.source import Source


def arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Declare the study, its CSV files and the file to write."""
    parser.add_argument("--study", type=Path, help="the plan: results/STUDY/study-….json")
    parser.add_argument(
        "--csv", type=Path, help="folder of the CSV files (default: csv/ beside the plan)"
    )
    parser.add_argument("--out", type=Path, help=f"file to write (default: {out})")


def open_source(args: argparse.Namespace, made: Made) -> Source:
    """The study, with those of its CSV files that the file is made from."""
    if args.study is None:
        raise UserError("no study; name its plan: --study results/STUDY/study-….json")
    return source.load(args.study, args.csv or args.study.parent / "csv", made.csv)


def write(out: Path, text: str) -> None:
    """Write a generated file and the folder that it lies in."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
