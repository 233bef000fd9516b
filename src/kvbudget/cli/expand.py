"""Write the expanded plan of a study, and what its digests of code stand for."""

import argparse
import json
import os
import shlex
from pathlib import Path

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
        _write(CODE / f"{digest}.json", parts)
    _write(args.out, study.as_json())


def _write(out: Path, content: dict) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(out)
