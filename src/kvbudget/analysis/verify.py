"""Is a finished study still what its configuration, code, models and text give? Every digest is
computed again, and what is stale is named with the reason."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kvbudget.analysis import checks, schema
from kvbudget.analysis.aggregate import aggregate
from kvbudget.errors import UserError
from kvbudget.sources import lock
from kvbudget.sources.digest import file_sha256
from kvbudget.sources.registry import SOURCE, parse
from kvbudget.study import records
from kvbudget.study.identity import LOCK
from kvbudget.study.older import explain
from kvbudget.study.plan import Study


def stale(study: Study) -> list[tuple[str, str]]:
    """(path, reason) of everything on disk that the plan does not stand for."""
    models = study.root / "results/models"
    cells, problems = records.load(study)
    found = [
        *_models(study, models),
        *_texts(study),
        *_calibrations(study, models),
        *_records(study, problems),
        *((each.path, each.reason) for each in checks.other_weights(cells, models)),
        *_other_text(cells, study.root),
        *_other_calibration(cells, study.root),
    ]
    # What is made of records that are not right is not right either, and goes without saying.
    return found or list(_tables(study))


def _records(study: Study, problems: list[records.Problem]) -> Iterator[tuple[str, str]]:
    wanted = {cell.path: cell for cell in study.cells}
    for problem in problems:
        cell, reason = wanted[problem.path], problem.reason
        if problem.missing:
            reason = explain(study.root, cell.path, cell.spec, cell.code)
        yield problem.path, reason


def _models(study: Study, directory: Path) -> Iterator[tuple[str, str]]:
    locked = lock.read(study.root / LOCK)
    for model in study.models:
        path = directory / f"{model}.verified.json"
        files = (_json(path) or {}).get("files")
        if files is None:
            yield str(path), "missing"
            continue
        note = parse(model, study.config["models"][model]).note()
        if files.get(SOURCE) != hashlib.sha256(note.encode()).hexdigest():
            yield str(path), "the config now takes this model from somewhere else"
        if model in locked and files != locked[model]:
            differing = _differing(files, locked[model])
            yield str(path), f"verified are other files than {LOCK} lists: {differing}"
        # Weights may be gone once all is measured.
        if (directory / model / SOURCE).exists():
            found = lock.hash_files(directory / model)
            if found != files:
                yield str(directory / model), f"changed since: {_differing(found, files)}"


def _texts(study: Study) -> Iterator[tuple[str, str]]:
    for path in study.texts:
        text = study.root / path
        sha256 = (_json(text.with_suffix(".verified.json")) or {}).get("sha256")
        if sha256 is None:
            yield str(Path(path).with_suffix(".verified.json")), "missing"
        elif text.exists() and file_sha256(text) != sha256:
            yield path, "changed since it was made"


def _calibrations(study: Study, models: Path) -> Iterator[tuple[str, str]]:
    for planned in study.calibrations:
        made = _json(study.root / planned.path)
        if made is None:
            yield planned.path, explain(study.root, planned.path, planned.spec, planned.code)
            continue
        wanted = (planned.spec, planned.code, planned.identity)
        if (made["spec"], made["code"], made["identity"]) != wanted:
            yield planned.path, "holds another calibration"
        verified = (_json(models / f"{planned.model}.verified.json") or {}).get("sha256")
        if verified and made["model_sha256"] != verified:
            yield planned.path, "measured with other weights than the verified ones"


def _other_text(cells: list[records.Cell], root: Path) -> Iterator[tuple[str, str]]:
    for cell in cells:
        verified = _json((root / cell.planned.text).with_suffix(".verified.json")) or {}
        measured = cell.record["provenance"].get("text_sha256")
        if measured and measured != verified.get("sha256"):
            yield cell.planned.path, "measured on another text than the verified one"


def _other_calibration(cells: list[records.Cell], root: Path) -> Iterator[tuple[str, str]]:
    """A calibration that was made anew gives other numbers under its old name."""
    for cell in cells:
        path = cell.planned.calibration
        if path is None or not (root / path).exists():
            continue
        found, measured = file_sha256(root / path), cell.record["provenance"]["calibration_sha256"]
        if found != measured:
            yield cell.planned.path, f"measured with another calibration than {path} now holds"


def _tables(study: Study) -> Iterator[tuple[str, str]]:
    """CSV files that the records no longer give; a study that has none is not yet aggregated."""
    here = study.root / study.directory / "csv"
    with tempfile.TemporaryDirectory() as scratch:
        aggregate(study, Path(scratch))
        for table in schema.TABLES:
            made, found = Path(scratch) / f"{table}.csv", here / f"{table}.csv"
            if not found.exists():
                yield f"{study.directory}/csv/{table}.csv", "missing"
            elif made.read_bytes() != found.read_bytes():
                yield f"{study.directory}/csv/{table}.csv", "is not what the records give"


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
