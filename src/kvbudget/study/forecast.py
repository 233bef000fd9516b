"""What a study will cost, before anything runs. Imports no torch and needs no network.

Shapes of models come from their verified files or, before these are there, from `size:` in the
config. Times are known once a few cells of the study, or of another one, are finished: a model of
cost is fitted on those, so it is one of the machine that measured them. It counts multiplications
and passes over weights, so it goes from small models to large ones, if too high on a GPU, which
small ones leave idle in part.
"""

import datetime
import json
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from kvbudget.policies import registry as methods
from kvbudget.run.grouping import contexts_at_once
from kvbudget.sources import registry
from kvbudget.sources.registry import Size
from kvbudget.study.plan import Planned, Study
from kvbudget.study.prefills import RECORDING, Prefills, worthwhile
from kvbudget.tasks import registry as tasks

GB = 1e9
ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}
#: Fewer finished cells than these tell too little about the terms of the cost.
LEAST_CELLS = 4
#: Tokens, about, of a question.
QUESTION = 40
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Costs:
    """Seconds of a cell as a non-negative sum of what it does (`work`)."""

    seconds: np.ndarray
    cells: int
    error: float  # median relative error on the cells it is fitted on
    study: str  # whose cells they are
    device: str  # that has measured them, and how many at once
    gpu: bool

    def hours(self, work: np.ndarray) -> float:
        return float(work @ self.seconds) / 3600


def work(cell: Planned, size: Size, read: int) -> np.ndarray:
    """What a cell does, `(4,)`: one start, and in units of 10¹⁵ multiplications the weights of all
    tokens, the attention of its prompts, and the weights once for each forward pass of answers,
    which takes as long to read them as to multiply by them.

    It reads `read` of its contexts and adopts the others, which takes next to no time.
    """
    contexts = cell.spec["samples"]["contexts"]
    tokens, pairs = read, read
    if methods.method(cell.policy).holds_context:
        # Each is read again, each token with all of the first reading.
        tokens, pairs = read + contexts, read + 3 * contexts
    weights, attention = _reading(size, cell.length, tokens, pairs)
    weights += contexts * tokens_on_top(cell) * size.parameters / 1e15
    return np.array([1.0, weights, attention, passes(cell, size) * size.parameters / 1e15])


def recording(place: Prefills, size: Size) -> np.ndarray:
    """What it takes to record the contexts of a place, as `work`."""
    times = RECORDING * place.contexts
    return np.array([1.0, *_reading(size, place.spec["length"], times, times), 0.0])


def _reading(size: Size, length: int, tokens: float, pairs: float) -> tuple[float, float]:
    """The weights and the attention of so many prompts, as `work` counts them."""
    seen = (size.layers - size.sliding_layers) * length**2
    seen += size.sliding_layers * length * min(length, size.sliding_window)
    return (
        tokens * length * size.parameters / 1e15,
        pairs * seen * size.query_heads * size.head_dim / 1e15,
    )


def tokens_on_top(cell: Planned) -> int:
    """Tokens, about, that a cell reads on top of a context: questions, the answers that they could
    have, and those that are written."""
    kind = tasks.kind(cell.kind)
    if kind.throughout:
        return 0
    return cell.spec["samples"]["questions"] * (QUESTION + 3 * kind.passes)


def passes(cell: Planned, size: Size) -> int:
    """Forward passes, about, that a cell makes after its prompts are read.

    A translation is written while its source is read, whatever the number of questions; questions
    are asked together where the budget is the context's.
    """
    kind, samples = tasks.kind(cell.kind), cell.spec["samples"]
    if kind.protocol == "translation":
        return samples["contexts"] * kind.passes * cell.length
    if cell.spec["method"].get("bounded") == "always":
        return samples["contexts"] * samples["questions"] * kind.passes
    held = cache_bytes(size, cell.length, ITEMSIZE[cell.spec["dtype"]])
    return ceil(samples["contexts"] / contexts_at_once(samples["questions"], held)) * kind.passes


def cache_bytes(size: Size, tokens: int, itemsize: int) -> int:
    """Bytes of all keys and values of one sequence of `tokens` tokens."""
    held = (size.layers - size.sliding_layers) * tokens
    held += size.sliding_layers * min(tokens, size.sliding_window)
    return held * size.kv_heads * 2 * size.head_dim * itemsize


def sizes(study: Study, models: Path) -> dict[str, Size | None]:
    """Shape of each model that some cell uses; None where nothing tells."""
    return {
        key: registry.parse(key, study.config["models"][key]).size
        or _verified_size(models / f"{key}.verified.json")
        for key in dict.fromkeys(cell.model for cell in study.cells)
    }


def _verified_size(file: Path) -> Size | None:
    if not file.exists():
        return None
    verified = json.loads(file.read_text(encoding="utf-8"))
    return Size(
        parameters=verified["checks"]["parameters"],
        **{name: verified[name] for name in ("layers", "query_heads", "kv_heads", "head_dim")},
        sliding_layers=sum(kind != "full_attention" for kind in verified["layer_types"]),
        # It is not recorded; so long a window counts sliding layers as full ones.
        sliding_window=verified["context"],
    )


def fit(study: Study, known: dict[str, Size | None]) -> Costs | None:
    """The costs of a study's finished cells, of the device that has measured most of them; None if
    there are too few. Measurements that shared it count with their share of the time."""
    done: dict[str, list[tuple[np.ndarray, float]]] = {}
    for cell in study.cells:
        file = study.root / cell.path
        if known[cell.model] is not None and file.exists():
            record = json.loads(file.read_text(encoding="utf-8"))
            when, read = record["provenance"], len(record["contexts"]["read"])
            started, finished = (
                datetime.datetime.fromisoformat(when[name]) for name in ("started", "finished")
            )
            # Records count whole seconds.
            seconds = max(1.0, (finished - started).total_seconds()) / when["at_once"]
            beside = f", {when['at_once']} at once" if when["at_once"] > 1 else ""
            done.setdefault(when["device"] + beside, []).append(
                (work(cell, known[cell.model], read), seconds)
            )
    device = max(done, key=lambda name: len(done[name]), default="")
    if len(done.get(device, ())) < LEAST_CELLS:
        return None
    terms, seconds = map(np.array, zip(*done[device], strict=True))
    # Relative errors are what counts: a short cell weighs as much as a long one.
    solution, _ = nnls(terms / seconds[:, None], np.ones(len(seconds)))
    error = float(np.median(np.abs(terms @ solution / seconds - 1)))
    gpu = device.partition(",")[0] != "cpu"
    return Costs(solution, len(seconds), error, study.name, device, gpu)


def model_table(study: Study, known: dict[str, Size | None], models: Path) -> pd.DataFrame:
    """One row a model: where from, whether it is gated or there already, bytes to download."""
    rows = []
    for key, size in known.items():
        spec = registry.parse(key, study.config["models"][key])
        here = (models / f"{key}.verified.json").exists()
        download = 0.0
        if not here and spec.source in ("pypi", "hub", "modelscope"):
            download = (size.download or 2 * size.parameters) / GB if size else float("nan")
        rows.append(
            {
                "model": key,
                "source": getattr(spec, "repo", spec.source),
                "gated": "yes" if spec.gated else "no",
                "on disk": "yes" if here else "no",
                "download (GB)": download,
                # Quantised files are kept as bfloat16.
                "disk (GB)": 2 * size.parameters / GB if size else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def cell_table(study: Study, known: dict[str, Size | None], costs: Costs | None) -> pd.DataFrame:
    """One row a model and length: cells, memory and time of one, time of all."""
    rows = []
    itemsize = ITEMSIZE[study.config["dtype"]]
    places = shared(study, costs)
    own = study.config["prefills"]["own_contexts"]
    adopting = {path for place in places for path in place.cells}
    groups = dict.fromkeys((cell.model, cell.length) for cell in study.cells)
    for model, length in groups:
        mine = [cell for cell in study.cells if (cell.model, cell.length) == (model, length)]
        size = known[model]
        memory = hours = float("nan")
        if size:
            memory = (size.parameters * itemsize + cache_bytes(size, length, itemsize)) / GB
            if costs:
                reads = [
                    min(own, contexts) if cell.path in adopting else contexts
                    for cell in mine
                    for contexts in [cell.spec["samples"]["contexts"]]
                ]
                todo = [work(cell, size, read) for cell, read in zip(mine, reads, strict=True)]
                todo += [
                    recording(place, size)
                    for place in places
                    if (place.spec["model"], place.spec["length"]) == (model, length)
                ]
                hours = sum(map(costs.hours, todo))
        rows.append(
            {
                "model": model,
                "length": length,
                "cells": len(mine),
                "done": sum((study.root / cell.path).exists() for cell in mine),
                "memory a cell (GB)": memory,
                "hours a cell": hours / len(mine),
                "hours": hours,
            }
        )
    return pd.DataFrame(rows)


def shared(study: Study, costs: Costs | None) -> list[Prefills]:
    """Places whose contexts are read once, if nothing is there yet and no GPU is."""
    gpu = study.config["device"] == "cuda" or (costs is not None and costs.gpu)
    if gpu and study.config["prefills"]["share"] == "auto":
        return []
    return worthwhile(study, [cell.path for cell in study.cells])


def disk(study: Study, known: dict[str, Size | None], costs: Costs | None) -> str | None:
    """What recorded contexts take on the disk, in words; None where none are recorded."""
    itemsize, bound = ITEMSIZE[study.config["dtype"]], study.config["prefills"]["disk_gb"]
    sizes = [
        place.contexts * cache_bytes(size, place.spec["length"], itemsize) / GB
        for place in shared(study, costs)
        if (size := known[place.spec["model"]]) is not None
    ]
    if not sizes:
        return None
    return (
        f"Disk: up to {min(max(sizes), bound):.3g} GB at a time for contexts that are read once"
        " for all methods, where there is no GPU (`prefills`)."
    )


def report(study: Study, models: Path, timed: Study | None = None) -> str:
    """Both tables and what they mean, as text.

    Args:
        study: what is planned.
        models: folder of the models that are there.
        timed: whose finished cells tell times; by default its own.
    """
    known = sizes(study, models)
    timed = timed or study
    costs = fit(timed, known if timed is study else sizes(timed, models))
    of_models, of_cells = model_table(study, known, models), cell_table(study, known, costs)
    gated = [
        f"  https://huggingface.co/{row['source']}"
        for row in of_models.to_dict("records")
        if row["gated"] == "yes" and row["on disk"] == "no"
    ]
    lines = [
        f"Study {study.name}: {len(study.cells)} cells, valid."
        " Context lengths and budgets were checked when it was expanded.",
        "",
        _text(of_models),
        "",
        _text(of_cells),
        "",
        f"Downloads: {_sum(of_models['download (GB)'])} GB."
        " Memory: weights and the whole prompt's cache; activations come on top.",
    ]
    if (said := disk(study, known, costs)) is not None:
        lines.append(said)
    if costs:
        lines.append(
            f"Hours: {_sum(of_cells['hours'])} for all cells (calibrations of heads come on top),"
            f" fitted on {costs.cells} finished cells of study {costs.study} (median error"
            f" {costs.error:.0%}), for a device like theirs ({costs.device})."
        )
    else:
        lines.append(
            f"Hours: unknown; they are fitted once {LEAST_CELLS} cells of study {timed.name} are"
            " finished."
        )
    if gated:
        lines += ["Gated: accept the licence of each on the hub and set HF_TOKEN.", *gated]
    return "\n".join(lines)


def _text(frame: pd.DataFrame) -> str:
    return frame.to_string(index=False, na_rep=UNKNOWN, float_format=lambda value: f"{value:.3g}")


def _sum(column: pd.Series) -> str:
    """The sum of what is known."""
    total = f"{column.sum():.3g}"
    return f"at least {total}" if column.isna().any() else total
