"""Is a finished study still what its configuration, code, models and text give?

`python -m kvbudget.study.verify --study results/{study}/study.json`, after Snakemake has brought that
plan up to date, computes every digest again and names what is stale and why. `make verify` does
both.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kvbudget.analysis import checks, schema
from kvbudget.analysis.aggregate import aggregate
from kvbudget.errors import UserError, run_cli
from kvbudget.sources import lock
from kvbudget.sources.digest import file_sha256
from kvbudget.sources.download import source_note
from kvbudget.sources.formats import SOURCE
from kvbudget.sources.registry import parse
from kvbudget.study import expand as studies
from kvbudget.study.records import Study, load_study

_LOCK = Path("workflow/models.lock.yaml")


def stale(plan: Study, results: Path) -> Iterator[tuple[str, str]]:
    """(path, reason) of everything in the directory `results` that the plan does not stand for."""
    study = studies.expand(plan.config)
    yield from _models(study, results / "models")
    yield from _text(study, results / "text")
    yield from _calibrations(study, plan, results / "models")
    cells, problems = checks.load(plan)
    problems += checks.other_weights(cells, results / "models")
    yield from ((problem.path, problem.reason) for problem in problems)
    yield from _other_text(cells, results / "text")
    if not problems:
        yield from _tables(plan, results / "models")


def _models(study: studies.Study, directory: Path) -> Iterator[tuple[str, str]]:
    locked = lock.read(_LOCK)
    for model in study.models:
        path = directory / f"{model}.verified.json"
        files = (_json(path) or {}).get("files")
        if files is None:
            yield str(path), "missing"
            continue
        note = source_note(parse(model, study.config["models"][model]))
        if files.get(SOURCE) != hashlib.sha256(note.encode()).hexdigest():
            yield str(path), "the config now takes this model from somewhere else"
        if model in locked and files != locked[model]:
            differing = _differing(files, locked[model])
            yield str(path), f"verified are other files than {_LOCK} lists: {differing}"
        # Weights may be gone once all is measured.
        if (directory / model / SOURCE).exists():
            found = lock.hash_files(directory / model)
            if found != files:
                yield str(directory / model), f"changed since: {_differing(found, files)}"


def _text(study: studies.Study, directory: Path) -> Iterator[tuple[str, str]]:
    for key in study.haystacks:
        verified, text = directory / f"{key}.verified.json", directory / f"{key}.txt"
        sha256 = (_json(verified) or {}).get("sha256")
        if sha256 is None:
            yield str(verified), "missing"
        elif text.exists() and file_sha256(text) != sha256:
            yield str(text), "changed since it was made"


def _calibrations(study: studies.Study, plan: Study, models: Path) -> Iterator[tuple[str, str]]:
    for path, spec in study.calibrations.items():
        calibration = _json(plan.file.parents[2] / path)
        if calibration is None:
            yield path, "missing"
            continue
        if calibration["spec"] != spec:
            yield path, checks.other_spec(calibration["spec"], spec)
        if calibration["code"] != study.calibration_code:
            yield path, checks.other_code(plan, calibration["code"], study.calibration_code)
        verified = (_json(models / f"{calibration['model']}.verified.json") or {}).get("sha256")
        if verified and calibration["model_sha256"] != verified:
            yield path, "measured with other weights than the verified ones"


def _other_text(cells: list[checks.Cell], directory: Path) -> Iterator[tuple[str, str]]:
    for cell in cells:
        key = cell.planned.spec["haystack"]
        verified = _json(directory / f"{key}.verified.json") or {}
        measured = cell.record["provenance"].get("text_sha256")
        if measured and measured != verified.get("sha256"):
            yield cell.planned.path, "measured on another text than the verified one"


def _tables(plan: Study, models: Path) -> Iterator[tuple[str, str]]:
    """CSV files that the records no longer give; a study that has none is not yet aggregated."""
    here = plan.file.parent
    with tempfile.TemporaryDirectory() as scratch:
        aggregate(plan.file, Path(scratch), models, here / "calibrations")
        for table in schema.TABLES:
            made, found = Path(scratch) / f"{table}.csv", here / "csv" / f"{table}.csv"
            if not found.exists():
                yield str(found), "missing"
            elif made.read_bytes() != found.read_bytes():
                yield str(found), "is not what the records give"


def _json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); delete it and make it again") from None


def _differing(found: dict[str, str], wanted: dict[str, str]) -> str:
    names = sorted(found.keys() | wanted.keys())
    return ", ".join(name for name in names if found.get(name) != wanted.get(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, required=True, help="results/{study}/study.json")
    args = parser.parse_args()
    plan = load_study(args.study)
    found = list(stale(plan, args.study.parents[1]))
    for path, reason in found:
        print(f"{path}: {reason}")
    if found:
        print(f"{len(found)} stale or missing; `make paper STUDY={plan.name}` makes them again")
        sys.exit(1)
    print(f"study {plan.name}: {len(plan.cells)} cells and all they rest on are current")


if __name__ == "__main__":
    run_cli(main)
