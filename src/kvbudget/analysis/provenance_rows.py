"""models.csv, provenance.csv and code_digests.csv: what was measured, with what, by which code."""

import json

import pandas as pd

from kvbudget.study.plan import Study
from kvbudget.study.records import Cell
from kvbudget.study.standing import Standings

SHAPE = ("layers", "query_heads", "kv_heads", "head_dim", "context")


def model_rows(study: Study, cells: list[Cell]) -> pd.DataFrame:
    """One row a model; shapes from verified.json, 0 where there is none."""
    rows = []
    files = {cell.planned.model: study.root / cell.planned.verified for cell in cells}
    for model, file in files.items():
        entry = study.config["models"].get(model, {})
        verified = {}
        if file.exists():
            verified = json.loads(file.read_text(encoding="utf-8"))
        measured = {
            c.record["provenance"]["model_sha256"] for c in cells if c.planned.model == model
        }
        rows.append(
            {
                "model": model,
                "title": study.title("models", model),
                "source": describe_source(entry),
                "sha256": "; ".join(sorted(measured)),
                "dtype": study.config.get("dtype", ""),
                **{name: verified.get(name) or 0 for name in SHAPE},
            }
        )
    return pd.DataFrame(rows)


def describe_source(entry: dict) -> str:
    """Where a model comes from, in a few words, from its entry in the config."""
    source = entry.get("source", "")
    if source == "pypi":
        return "Python packages " + ", ".join(entry.get("packages", []))
    if source in ("hub", "modelscope"):
        place = {"hub": "Hugging Face hub", "modelscope": "ModelScope"}[source]
        return f"{place} {entry.get('repo', '')} at {str(entry.get('revision', ''))[:12]}"
    if source == "random":
        return f"random weights, {entry.get('architecture', '')} architecture"
    return source


def provenance_rows(cells: list[Cell]) -> pd.DataFrame:
    """Libraries, machine, number format, commit and split over all cells."""
    seen: dict[str, set[str]] = {}
    for cell in cells:
        provenance = cell.record["provenance"]
        items = dict(provenance.get("versions") or {})
        items["split"] = cell.planned.spec["split"]
        items |= {
            name: provenance.get(name)
            for name in ("device", "cpu", "threads", "kernels", "at_once", "dtype", "git_commit")
        }
        for name, value in items.items():
            if value is not None:
                seen.setdefault(name, set()).add(str(value))
    return pd.DataFrame(
        {"item": name, "value": "; ".join(sorted(values))} for name, values in seen.items()
    )


def code_rows(study: Study, cells: list[Cell]) -> pd.DataFrame:
    """One row a cell: the code that measured it, and how it stands to today's."""
    standings = Standings(study)
    rows = []
    for cell in cells:
        standing = standings.of(cell.planned, cell.record)
        rows.append(
            {
                "path": cell.planned.path,
                "policy": cell.planned.policy,
                "kind": cell.planned.kind,
                "code": cell.record["code"],
                "standing": standing.kind,
                "modules": "; ".join(standing.modules),
                "libraries": "; ".join(standing.libraries),
            }
        )
    return pd.DataFrame(rows)
