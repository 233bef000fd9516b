"""Is a finished study still what its configuration, code, models and texts give? Every digest is
computed again, and what is stale is named with the reason. A published record of earlier code is
stale unless it is attested."""

import hashlib
import json
import tempfile
from collections import Counter
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
from kvbudget.study.plan import STORE, Study
from kvbudget.study.standing import Standings

MODELS = f"{STORE}/models"


def stale(study: Study) -> list[tuple[str, str]]:
    """(path, reason) of everything on disk that the plan does not stand for."""
    cells, problems = records.load(study)
    standings = Standings(study)
    found = [
        *_models(study),
        *_texts(study),
        *_calibrations(study, standings),
        *_records(study, problems),
        *_earlier(cells, standings),
        *((each.path, each.reason) for each in checks.other_weights(cells, study.root)),
        *_other_text(cells, study.root),
        *_other_calibration(cells, study.root),
    ]
    # What is made of records that are not right is not right either, and goes without saying.
    return found or list(_tables(study))


def counts(study: Study) -> tuple[dict[str, int], list[str]]:
    """How many cells of a study stand how to today's code, and the libraries that changed since."""
    known = Standings(study)
    found = [known.of(cell.planned, cell.record) for cell in records.load(study)[0]]
    libraries = {name for standing in found for name in standing.libraries}
    return dict(Counter(standing.kind for standing in found)), sorted(libraries)


def _records(study: Study, problems: list[records.Problem]) -> Iterator[tuple[str, str]]:
    wanted = {cell.path: cell for cell in study.cells}
    for problem in problems:
        cell, reason = wanted[problem.path], problem.reason
        if problem.missing:
            reason = explain(study.root, cell.path, cell.spec, cell.code)
        yield problem.path, reason


def _earlier(cells: list[records.Cell], standings: Standings) -> Iterator[tuple[str, str]]:
    for cell in cells:
        if (standing := standings.of(cell.planned, cell.record)).stale:
            yield cell.planned.path, standing.why


def _models(study: Study) -> Iterator[tuple[str, str]]:
    locked = lock.read(study.root / LOCK)
    for model, path in dict.fromkeys((each.model, each.verified) for each in study.results):
        files = (_json(study.root / path) or {}).get("files")
        if files is None:
            yield path, "missing"
            continue
        note = parse(model, study.config["models"][model]).note()
        if files.get(SOURCE) != hashlib.sha256(note.encode()).hexdigest():
            yield path, "the config now takes this model from somewhere else"
        if model in locked and files != locked[model]:
            differing = _differing(files, locked[model])
            yield path, f"verified are other files than {LOCK} lists: {differing}"
        # Weights may be gone once all is measured.
        folder = f"{MODELS}/{model}"
        if (study.root / folder / SOURCE).exists():
            found = lock.hash_files(study.root / folder)
            if found != files:
                yield folder, f"changed since: {_differing(found, files)}"


def _texts(study: Study) -> Iterator[tuple[str, str]]:
    for path, verified in dict.fromkeys((each.text, each.verified_text) for each in study.results):
        text = study.root / path
        sha256 = (_json(study.root / verified) or {}).get("sha256")
        if sha256 is None:
            yield verified, "missing"
        elif text.exists() and file_sha256(text) != sha256:
            yield path, "changed since it was made"


def _calibrations(study: Study, standings: Standings) -> Iterator[tuple[str, str]]:
    for planned in study.calibrations:
        made = _json(study.root / planned.path)
        if made is None:
            yield planned.path, explain(study.root, planned.path, planned.spec, planned.code)
            continue
        wanted = (planned.spec, planned.code, planned.identity)
        if (made["spec"], made["code"], made["identity"]) != wanted:
            yield planned.path, "holds another calibration"
        elif (standing := standings.of(planned, made)).stale:
            yield planned.path, standing.why
        verified = (_json(study.root / planned.verified) or {}).get("sha256")
        if verified and made["model_sha256"] != verified:
            yield planned.path, "measured with other weights than the verified ones"


def _other_text(cells: list[records.Cell], root: Path) -> Iterator[tuple[str, str]]:
    for cell in cells:
        verified = _json(root / cell.planned.verified_text) or {}
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
    """CSV files that the records no longer give; a study that has none is not yet aggregated, and
    one that is published need not be."""
    here = study.root / study.directory / "csv"
    if study.published and not here.exists():
        return
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
