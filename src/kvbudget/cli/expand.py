"""Write the expanded plan of a study, and what its digests of code stand for."""

import argparse
import json
import os
import shlex
from pathlib import Path

from kvbudget.run.files import write_json
from kvbudget.study.expand import code_parts, expand
from kvbudget.study.older import CODE
from kvbudget.study.plan import DEFAULT_COMMAND


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--config", required=True, type=json.loads, help="checked, as JSON")
    parser.add_argument("--out", required=True, type=Path)


def run(args: argparse.Namespace) -> None:
    """Write both."""
    # Not among the arguments: the same plan is made by runs that were started otherwise.
    command = shlex.split(os.environ.get("KVBUDGET_COMMAND", "")) or DEFAULT_COMMAND
    study = expand(args.config, command=command)
    for digest, parts in code_parts(study).items():
        write_json(CODE / f"{digest}.json", parts, indent=1)
    write_json(args.out, study.as_json(), indent=1)
