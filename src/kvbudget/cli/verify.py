"""Name what of a finished study is stale or missing, and why."""

import argparse
import sys

from kvbudget.analysis.verify import stale
from kvbudget.cli import study_argument


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    study_argument.add(parser)


def run(args: argparse.Namespace) -> None:
    """Print what was found; exit status 1 if it is anything."""
    study = study_argument.load(args)
    found = stale(study)
    for path, reason in found:
        print(f"{path}: {reason}")
    if found:
        print(f"{len(found)} stale or missing; `{study.run([])}` makes them again")
        sys.exit(1)
    print(f"study {study.name}: {len(study.cells)} cells and all they rest on are current")
