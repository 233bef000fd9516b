"""Finished cells of a study in, tidy CSV files out; or one error that says what is wrong."""

from pathlib import Path

import pandas as pd

from kvbudget.analysis import checks, schema
from kvbudget.analysis.cell_rows import cell_rows
from kvbudget.analysis.comparison_rows import comparison_rows, pooled_rows
from kvbudget.analysis.head_rows import (
    allocation_rows,
    head_rows,
    load_calibrations,
    loss_rows,
    rank_rows,
    scorer_rows,
    stability_rows,
)
from kvbudget.analysis.held_rows import held_rows
from kvbudget.analysis.measured import measured
from kvbudget.analysis.order_rows import order_rows
from kvbudget.analysis.provenance_rows import code_rows, model_rows, provenance_rows
from kvbudget.errors import UserError
from kvbudget.study import records
from kvbudget.study.plan import Study

MODELS = Path("results/models")


def aggregate(study: Study, out: Path, draft: bool = False) -> None:
    """Check a study and write all CSV files of `schema.TABLES`, and what they mean, into `out`.

    Args:
        study: the plan; its results lie below `study.root`.
        out: folder of the CSV files.
        draft: let cells be missing; the paper then says DRAFT on its first page.

    Raises:
        UserError: a cell is missing or wrong; the message lists all and the mending command.
    """
    models = study.root / MODELS
    cells, problems = records.load(study)
    problems += checks.unequal_bytes(cells)
    problems += checks.beyond_plan(cells)
    problems += checks.unpaired(cells)
    problems += checks.mixed_codes(cells)
    problems += checks.other_weights(cells, models)
    missing = [problem.path for problem in problems if problem.missing]
    checks.refuse(study, [p for p in problems if not (draft and p.missing)])
    if not cells:
        raise UserError(f"study {study.name} has no finished cell; run `{study.run([])}`")

    calibrations = load_calibrations(study)
    groups = measured(cells)
    rows = cell_rows(groups, study.seed)
    frames = {
        "cells": rows,
        "comparisons": comparison_rows(study, groups),
        "pooled": pooled_rows(study, groups),
        "orders": order_rows(study, groups),
        "held": held_rows(rows),
        "heads": head_rows(calibrations),
        "allocation": allocation_rows(groups, calibrations),
        "loss_curves": loss_rows(calibrations),
        "stability": stability_rows(calibrations),
        "scorer": scorer_rows(calibrations),
        "ranks": rank_rows(calibrations),
        "models": model_rows(study, cells, models),
        "provenance": provenance_rows(cells),
        "code_digests": code_rows(cells),
        "missing": pd.DataFrame({"path": missing}),
    }
    out.mkdir(parents=True, exist_ok=True)
    for table, frame in frames.items():
        schema.write(frame, table, out)
    (out / "README.md").write_text(schema.dictionary(), encoding="utf-8")
