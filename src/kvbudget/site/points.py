"""What the curves of the page are drawn from: every cell, every number of it, and its records."""

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kvbudget.paper import budgets, times
from kvbudget.paper.plots import style
from kvbudget.paper.source import Source
from kvbudget.site import plain
from kvbudget.study.plan import AXES, FULL, Study

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of a cell as the page shows it.

    Attributes:
        label: what an axis says.
        section: the part of the page that has it.
        unit: what stored numbers are divided by.
        share: whether it lies between 0 and 1, and is drawn on all of that.
    """

    label: str
    section: str
    unit: int = 1
    share: bool = False


def _quality(label: str, share: bool = False) -> Metric:
    return Metric(label=label, section="quality", share=share)


def _mib(label: str) -> Metric:
    return Metric(label=label, section="memory", unit=MIB)


def _speed(label: str) -> Metric:
    return Metric(label=label, section="speed")


#: In the order in which they are offered; the first that a study has is shown first.
METRICS = {
    "score": _quality("score", share=True),
    "choice": _quality("forced choice", share=True),
    "nll": _quality("NLL of the answer (nats a token)"),
    "any": _quality("any needle named", share=True),
    "given_any": _quality("right, given any needle", share=True),
    "bleu": _quality("BLEU"),
    "agreement": _quality("agreement with the full cache", share=True),
    "al": _quality("average lagging (words)"),
    "laal": _quality("length-adaptive average lagging (words)"),
    "cache_bytes_allocated": _mib("cache, allocated (MiB)"),
    "cache_bytes_planned": _mib("cache, planned (MiB)"),
    "peak_rss_bytes": _mib("process at its highest (MiB)"),
    "peak_cuda_bytes": _mib("GPU at its highest (MiB)"),
    "kept": Metric(label="tokens kept (share)", section="memory", share=True),
    "decode_ratio": _speed("decode speed (full cache = 1)"),
    "prefill_ratio": _speed("prefill time (full cache = 1)"),
    "decode_ms_per_token": _speed("decode step (ms)"),
    "prefill_s": _speed("prefill (s)"),
}
#: Vega's shapes for matplotlib's markers; those that Vega lacks are paths.
SHAPES = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "D": "diamond",
    "P": "cross",
    "X": "M-1,-.4L-.4,-1L0,-.6L.4,-1L1,-.4L.6,0L1,.4L.4,1L0,.6L-.4,1L-1,.4L-.6,0Z",
    "d": "M0,-1L.6,0L0,1L-.6,0Z",
    "p": "M0,-1L.95,-.31L.59,.81L-.59,.81L-.95,-.31Z",
    "h": "M0,-1L.87,-.5L.87,.5L0,1L-.87,.5L-.87,-.5Z",
    "H": "M-1,0L-.5,-.87L.5,-.87L1,0L.5,.87L-.5,.87Z",
}


def data(src: Source, page: Path) -> dict[str, Any]:
    """All that curves need, as JSON has it.

    Args:
        src: has cells.csv.
        page: the file of the page, from which records are linked.

    Returns:
        Titles of `models` and `tasks`, looks of `methods`, texts of `budgets`, `metrics`, the
        `cells` with links to their records, and `values`: number of the cell, metric, value, its
        interval, and its range over seeds of the calibration.
    """
    study, cells = src.study, _cells(src, page)
    numbers = {tuple(cell[axis] for axis in AXES): i for i, cell in enumerate(cells)}
    values = [
        [numbers[key], metric, *(_rounded(each) for each in row)]
        for key, metric, row in _values(src)
    ]
    used = {value[1] for value in values}
    return {
        "models": _titles(study, "models", src.cells["model"]),
        "tasks": _titles(study, "tasks", src.cells["task"]),
        "methods": methods(study),
        "budgets": {
            token: budgets.text(token)
            for token in sorted(set(src.cells["budget"]) - {FULL}, key=budgets.order)
        },
        "metrics": {name: vars(each) for name, each in METRICS.items() if name in used},
        "cells": cells,
        "values": values,
    }


def methods(study: Study) -> dict[str, dict[str, Any]]:
    """Title and look of each method, as the figures of the paper have them."""
    looks = {method: style.look(study, method) for method in study.methods}
    return {
        method: {
            "title": plain.typeset(study.title("methods", method)),
            "colour": colour,
            "shape": SHAPES[marker],
            "full": study.policy(method) == FULL,
            "main": method in study.main_methods,
        }
        for method, (colour, marker, _) in looks.items()
    }


def _titles(study: Study, section: str, keys: pd.Series) -> dict[str, str]:
    return {key: plain.typeset(study.title(section, key)) for key in dict.fromkeys(keys)}


def _cells(src: Source, page: Path) -> list[dict[str, Any]]:
    """One entry a row of measured axes; a method of several seeds has several records."""
    records = defaultdict(list)
    for planned in src.study.cells:
        path = src.study.root / planned.path
        if not src.draft or path.exists():
            records[planned.key].append(link(path, page))
    wide = src.cells.pivot(index=list(AXES), columns="metric", values="value")
    first = src.cells.drop_duplicates(list(AXES)).set_index(list(AXES))
    return [
        dict(zip(AXES, key, strict=True))
        | {
            "bits": row["bits"],
            "all_kept": bool(row["all_kept"]),
            "seeds": int(row["seeds"]),
            "samples": int(row["n_samples"]),
            "contexts": int(row["n_contexts"]),
            "chance": _rounded(wide["chance"].get(key)) if "chance" in wide else None,
            "mib": _rounded(wide["cache_bytes_planned"][key] / MIB),
            "kept": _rounded(wide["kept"][key]),
            "records": records[key],
        }
        for key, row in first.iterrows()
    ]


def link(path: Path, page: Path) -> str:
    """The address of a file as seen from the page, wherever both are moved to together."""
    return os.path.relpath(path, page.parent).replace(os.sep, "/")


def _values(src: Source) -> Iterator[tuple[tuple, str, list[float]]]:
    columns = ["value", "ci_low", "ci_high", "seed_low", "seed_high"]
    shown = src.cells[src.cells["metric"].isin(METRICS)]
    for row in shown.to_dict("records"):
        unit = METRICS[row["metric"]].unit
        key = tuple(row[axis] for axis in AXES)
        yield key, row["metric"], [row[column] / unit for column in columns]
    nothing = [float("nan")] * 4
    for row in times.ratios(src).to_dict("records"):
        key = tuple(row[axis] for axis in AXES)
        yield key, "decode_ratio", [row["decode"], *nothing]
        yield key, "prefill_ratio", [row["prefill"], *nothing]


def _rounded(value: float | None) -> float | None:
    """Five digits, as more would only make the page longer; None for what is not there."""
    return None if value is None or pd.isna(value) else float(f"{value:.5g}")
