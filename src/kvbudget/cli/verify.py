"""Name what of a finished study is stale or missing, and why. Of a published one say how many cells
today's code measured, and how many are attested."""

import argparse
import sys

from kvbudget.analysis.verify import counts, stale
from kvbudget.cli import study_argument
from kvbudget.study import published
from kvbudget.study.plan import Study


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    study_argument.add(parser)


def run(args: argparse.Namespace) -> None:
    """Print what was found; exit status 1 if it is anything."""
    study = study_argument.load(args)
    published.unpack(study)
    found = stale(study)
    for path, reason in found:
        print(f"{path}: {reason}")
    if any(each.published for each in study.results):
        print(_published(study))
    if found:
        print(f"{len(found)} stale or missing; {_remedy(study)}")
        sys.exit(1)
    print(f"study {study.name}: {len(study.cells)} cells and all they rest on are current")


def _published(study: Study) -> str:
    planned = len(study.cells) + study.left_out
    kinds, libraries = counts(study)
    ways = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    ways += f"; by other libraries: {', '.join(libraries)}" if libraries else ""
    of_plan = f"{len(study.cells)} of {planned} planned cells"
    return f"study {study.name} is published: {of_plan} ({ways})"


def _remedy(study: Study) -> str:
    if study.published:
        return (
            f"`kvbudget attest {study.name}` compares records of earlier code with today's, and "
            f"`published: {published.IGNORE}` measures all anew"
        )
    return f"`{study.run([])}` makes them again"
