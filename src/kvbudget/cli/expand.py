"""Write the expanded plan of a study, and what its digests of code stand for."""

import argparse
import json
import shlex
from pathlib import Path

from kvbudget.study.expand import code_parts, expand
from kvbudget.study.older import CODE


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("--config", required=True, type=json.loads, help="checked, as JSON")
    parser.add_argument("--command", required=True, type=shlex.split, help="that runs the study")
    parser.add_argument("--out", required=True, type=Path)


def run(args: argparse.Namespace) -> None:
    """Write both."""
    study = expand(args.config, command=args.command)
    for digest, parts in code_parts(study).items():
        _write(CODE / f"{digest}.json", parts)
    _write(args.out, study.as_json())


def _write(out: Path, content: dict) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(out)
