"""Compute some contexts of published records of earlier code anew, and compare them byte for byte.

What comes out the same is attested: it counts as measured by today's code. What does not is named.
Nothing is computed twice, so it may be interrupted. Models and texts have to be there.
"""

import argparse
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from kvbudget.cli import study_argument
from kvbudget.cli.cell import measure
from kvbudget.errors import UserError
from kvbudget.run import calibrate
from kvbudget.run.job import Cell
from kvbudget.run.machine import machine
from kvbudget.run.peers import environment
from kvbudget.sources.threads import GIVEN
from kvbudget.study import attest, expand, published
from kvbudget.study.identity import DIGITS, model_identity
from kvbudget.study.plan import STORE, Calibration, Planned, Study

#: Where what was computed again lies until it is found to be the same.
_AGAIN = f"{STORE}/attest"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    study_argument.add(parser)
    parser.add_argument(
        "--contexts", type=int, default=1, help="of each cell, the first (default: 1)"
    )


def run(args: argparse.Namespace) -> None:
    """Compare, and print what differs; exit status 1 if anything is left that is not attested."""
    if args.contexts < 1:
        raise UserError(f"--contexts is {args.contexts}; at least 1 of each cell is compared")
    study = study_argument.load(args, published.ONLY)
    if not study.published:
        raise UserError(
            f"study {study.name} is not published, so there is nothing to attest; `make publish "
            f"STUDY={study.name}` bundles its finished cells into {published.FOLDER}/"
        )
    published.unpack(study)
    found = attest.stale(study)
    if not found:
        print(f"study {study.name}: no published record is of earlier code")
        return
    here = _here()
    for reason, count in attest.hindered(found, here).items():
        print(f"{count} of {len(found)} records cannot be compared here: {reason}")
    possible = [(p, r) for p, r in found if not attest.hindrance(p, r, here)]
    _require(study, [planned for planned, _ in possible])
    attested = 0
    for planned, record in possible:
        again = _again(study, planned, record, args.contexts)
        if differing := attest.difference(record, json.loads(again.read_text(encoding="utf-8"))):
            print(f"{planned.path}: today's code gives another {differing}", flush=True)
            continue
        attest.note(study, planned, json.loads(again.read_text(encoding="utf-8")))
        again.unlink()
        attested += 1
    print(f"{attested} of {len(found)} records of earlier code attested", end="; ")
    print(f"`make publish STUDY={study.name}` puts that into {published.archive_of(study.name)}")
    if attested < len(found):
        sys.exit(1)


def _here() -> dict[str, Any]:
    """What this machine computes with."""
    cuda = torch.cuda.is_available()
    places = ["cpu", "cuda"] if cuda else ["cpu"]
    return {
        "versions": {name: importlib.metadata.version(name) for name in attest.LIBRARIES},
        "peers": environment.versions(*attest.PEERS),
        "cuda": cuda,
        "kernels": {place: machine(torch.device(place))["kernels"] for place in places},
    }


def _require(study: Study, results: Iterable[Planned | Calibration]) -> None:
    """See that models and texts are there."""
    needed = {path for each in results for path in (_verified(each), _text(each))}
    if missing := sorted(path for path in needed if not (study.root / path).exists()):
        raise UserError(
            f"{missing[0]} is missing, and records are computed again with it; get all that is "
            f"needed with: {study.run(missing)}"
        )


def _again(
    study: Study, planned: Planned | Calibration, record: dict[str, Any], contexts: int
) -> Path:
    """The file of a result computed again; one that is there is of the same code."""
    today = expand.code_of(planned)
    extent = "" if isinstance(planned, Calibration) else f"-{contexts}"
    name = f"{planned.identity[:DIGITS]}-{today[:DIGITS]}{extent}.json"
    out = study.root / _AGAIN / name
    if out.exists():
        return out
    # As it was measured: sums come out otherwise by other numbers of threads.
    os.environ[GIVEN] = str(record["provenance"]["threads"])
    os.environ["KVBUDGET_DEVICE"] = attest.device_of(record)
    entry = study.config["models"][planned.model]
    given = {
        "spec": planned.spec,
        "model_identity": model_identity(planned.model, entry, study.root),
        "model_dir": study.root / f"{STORE}/models/{planned.model}",
        "verified": study.root / _verified(planned),
        "text": study.root / _text(planned),
        "out": out,
        "code": today,
        "identity": planned.identity,
    }
    if isinstance(planned, Calibration):
        calibrate.run_calibration(calibrate.Calibration(**given, model=planned.model))
    else:
        calibration = planned.calibration and study.root / planned.calibration
        measure(Cell(**given, calibration=calibration), contexts)
        out.with_suffix(".contexts.jsonl").unlink()
    return out


def _verified(planned: Planned | Calibration) -> str:
    return f"{STORE}/models/{planned.model}.verified.json"


def _text(planned: Planned | Calibration) -> str:
    return f"{STORE}/text/{Path(planned.text).name}"
