"""What the page tells of heads: what each does, how many tokens each keeps, and how well their
scores are predicted."""

from pathlib import Path
from typing import Any

import pandas as pd

from kvbudget.analysis.head_rows import SIGNALS
from kvbudget.paper import budgets
from kvbudget.paper.source import Source
from kvbudget.site import plain
from kvbudget.site.points import link
from kvbudget.study.plan import AXES


def data(src: Source, page: Path) -> dict[str, Any]:
    """By model: its `heads`, how well its scorer predicts (`scorer`), and the `allocations` of the
    cells that spend their budget unevenly, the paper's own method first.

    Args:
        src: has heads.csv, allocation.csv and scorer.csv.
        page: the file of the page, from which records are linked.
    """
    heads, scorer = src.table("heads"), src.table("scorer")
    allocations = _allocations(src, page)
    return {
        model: {
            "signals": list(SIGNALS),
            "heads": _columns(heads[heads["model"] == model].drop(columns="model")),
            "scorer": _columns(scorer[scorer["model"] == model].drop(columns="model")),
            "allocations": [each for key, each in allocations if key == model],
        }
        for model in src.study.models
    }


def _columns(frame: pd.DataFrame) -> dict[str, list]:
    """A table as a list a column, which is shorter than an object a row."""
    return {name: frame[name].tolist() for name in frame}


def _allocations(src: Source, page: Path) -> list[tuple[str, dict[str, Any]]]:
    study, frame = src.study, src.table("allocation")
    records = {}
    for planned in study.cells:
        records.setdefault(planned.key, link(study.root / planned.path, page))
    found = []
    for key, part in frame.groupby(list(AXES), sort=False):
        model, task, length, method, budget = key
        titles = [
            plain.typeset(study.title("methods", method)),
            budgets.text(budget, part["all_kept"].all()),
            plain.typeset(study.title("tasks", task)),
            f"{length:,} tokens",
        ]
        entry = {
            "title": ", ".join(titles),
            "record": records[key],
            "slots": _columns(part[["layer", "kv_head", "class", "slots", "share"]].round(3)),
        }
        order = (method != study.ours, study.methods.index(method), budgets.order(budget))
        found.append((order, model, entry))
    return [(model, entry) for _, model, entry in sorted(found, key=lambda each: each[0])]
