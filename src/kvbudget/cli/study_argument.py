"""The study that a command is about, as people name it. No command itself."""

import argparse
from pathlib import Path

from kvbudget.study import published
from kvbudget.study.config import file_of, read
from kvbudget.study.expand import expand
from kvbudget.study.plan import DEFAULT_COMMAND, Study, load_study


def add(parser: argparse.ArgumentParser) -> None:
    """Let a command take a study."""
    parser.add_argument(
        "study",
        nargs="?",
        default="default",
        help="name of a file in workflow/studies/, or the path of one of your own",
    )
    parser.add_argument(
        "--published",
        choices=published.MODES,
        help="what it takes of results/published/ in place of what it is configured to",
    )


def add_planned(parser: argparse.ArgumentParser) -> None:
    """Let a command take a study or, as the workflow does, its plan."""
    add(parser)
    parser.add_argument("--plan", type=Path, help="in its place: results/STUDY/study-….json")


def load(args: argparse.Namespace, mode: str | None = None) -> Study:
    """The study, checked and expanded; where neither the arguments nor `mode` says what it takes of
    its published records, what it is configured to."""
    file, config = file_of(args.study), read(args.study)
    overlay = [] if file is None else ["--configfile", str(file)]
    if mode := args.published or mode:
        config["published"] = mode
        overlay += ["--config", f"published={mode}"]
    command, *options = DEFAULT_COMMAND
    return expand(config, command=[command, *overlay, *options])


def load_planned(args: argparse.Namespace) -> Study:
    """The study that is named, or the one of the plan."""
    return load_study(args.plan) if args.plan else load(args)
