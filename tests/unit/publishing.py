"""The tiny study, its records made up, and published, in a folder like the repository."""

import json
import shutil
from pathlib import Path

import synthetic

from kvbudget.sources.digest import file_sha256
from kvbudget.study import bundle, expand, published
from kvbudget.study.plan import Study

ROOT = Path(__file__).parents[2]


def folder(root: Path) -> Path:
    """Make of an empty folder one like the repository."""
    for name in ("config.yaml", "LICENSE"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "workflow", root / "workflow")
    return root


def planned(config: dict, root: Path, mode: str = published.ONLY) -> Study:
    return expand.expand({**config, "published": mode}, root)


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def measure(study: Study) -> None:
    """Leave records where a study wants them, and what they rest on."""
    root = study.root
    for each in study.calibrations:
        told = {"spec": each.spec, "code": each.code, "identity": each.identity}
        write(root / each.path, synthetic.calibration(each.model) | told)
    for each in study.cells:
        record = synthetic.record(each)
        used = each.calibration and file_sha256(root / each.calibration)
        record["provenance"] |= {"calibration_sha256": used, "text_sha256": "b" * 64}
        write(root / each.path, record)
    for each in study.results:
        write(root / each.verified, {"sha256": "a" * 64, "files": {}})
        write(root / each.verified_text, {"sha256": "b" * 64})
    for digest, parts in expand.code_parts(study).items():
        write(root / f"results/code/{digest}.json", parts)


def publish(study: Study) -> tuple[int, int]:
    """Bundle what is measured, and leave nothing else of it."""
    found = bundle.pack(study, study.root / published.archive_of("tiny"))
    for name in ("cells", "calibrations", "models", "text", "code"):
        shutil.rmtree(study.root / "results" / name, ignore_errors=True)
    return found
