"""One cell: a model, a method, a task, a length and a budget in; one JSON record out.

How contexts are read and measured is the task's protocol (`kvbudget.run.protocols`).
Contexts are appended to a side file as they finish, so a killed cell goes on where it stopped. The
side file outlives the cell, as Snakemake deletes the record of a job whose end it did not see; once
it has, the workflow removes the file.
"""

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from tqdm import tqdm

from kvbudget.api import attach
from kvbudget.errors import UserError
from kvbudget.run import protocols
from kvbudget.run.files import write_json
from kvbudget.run.job import WARM_UP, Cell
from kvbudget.run.machine import machine
from kvbudget.run.prefills import Store, facts
from kvbudget.run.record import provenance, record_of
from kvbudget.run.resume import finished
from kvbudget.run.runner import Runner
from kvbudget.run.samples import samples_of
from kvbudget.run.stopwatch import Stopwatch
from kvbudget.run.summary import summarise
from kvbudget.sources.digest import file_sha256
from kvbudget.sources.load import load
from kvbudget.sources.verified import read as read_verified
from kvbudget.tasks import registry as tasks
from kvbudget.tasks.request import Context


def results(
    protocol: ModuleType,
    runner: Runner,
    contexts: list[Context],
    side: Path,
    basis: dict,
    store: Store | None,
) -> Iterator[dict]:
    """Results of all contexts in order; those in the side file are not taken again, if they rest on
    the same (`basis`).

    Contexts that are measured together are so again where some of them are missing: what comes of
    one does not depend on the others but for rounding, and a record is to be the same to the bit.
    """
    done = finished(side, basis)
    step = protocol.at_once(runner, contexts)
    with side.open("a", encoding="utf-8") as log, tqdm(total=len(contexts), unit="context") as bar:
        for start in range(0, len(contexts), step):
            group = range(start, min(start + step, len(contexts)))
            parts = done[start : group.stop]
            if len(parts) < len(group):
                shared = [store.context(index) if store else None for index in group]
                measured = protocol.run(runner, [contexts[index] for index in group], shared)
                new = measured[len(parts) :]
                log.write("".join(json.dumps(each) + "\n" for each in new))
                log.flush()
                parts += new
            bar.update(len(parts))
            yield from parts


def run_cell(cell: Cell, count: int | None = None) -> dict:
    """Compute the record of a cell, and write it.

    Args:
        cell: what is asked for.
        count: contexts, of the first; None measures all.

    Raises:
        UserError: the cell does not fit its model, its calibration is another model's, or the
            device has too little memory.
    """
    try:
        return _run_cell(cell, count)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of device memory at length {cell.spec['length']}: lower it, or set "
            f"prefill_chunk for the method, or use a larger device ({error})"
        ) from None


@torch.inference_mode()
def _run_cell(cell: Cell, count: int | None) -> dict:
    spec, started = cell.spec, time.time()
    verified = read_verified(cell.verified, cell.model_identity)
    calibration = json.loads(cell.calibration.read_text()) if cell.calibration else None
    if calibration and calibration["model_sha256"] != verified["sha256"]:
        raise UserError(
            f"{cell.calibration} is the calibration of another model than {cell.model_dir}; "
            "delete it"
        )
    watch = Stopwatch()
    model, tokenizer = load(cell.model_dir, spec["dtype"])
    load_s = watch.seconds()
    if spec["length"] > verified["context"]:
        raise UserError(
            f"length {spec['length']} exceeds the {verified['context']} tokens that model "
            f"{spec['model']} reads; drop it from the experiment or use another model"
        )
    if cell.own_contexts < 1:
        raise UserError("own_contexts must be 1 or more, as no other contexts tell times and peaks")
    store = None
    if cell.prefills is not None:
        store = Store(cell.prefills, facts(model, verified["sha256"]), cell.own_contexts)
    contexts = samples_of(spec, tokenizer, cell.text)
    kind = spec["task"]["kind"]
    runner = Runner(
        attach(model),
        tokenizer,
        tasks.load(kind),
        spec["method"],
        spec["budget"],
        calibration,
        spec["task"].get("chunk"),
    )
    prompt = contexts[0].ids
    runner.read(runner.cache(len(prompt)), prompt[:WARM_UP])
    protocol = protocols.load(tasks.kind(kind).protocol)
    side = cell.out.with_suffix(".contexts.jsonl")
    basis = {
        "identity": cell.identity,
        "calibration_sha256": cell.calibration and file_sha256(cell.calibration),
        **machine(model.device),
    }
    found = results(protocol, runner, contexts, side, basis, store)
    measured = summarise(list(itertools.islice(found, count)))
    measured["timing"]["load_s"] = load_s
    measured["allocation"]["layers"] = list(runner.cache().plan.geometry.layers)
    used = {"calibration_sha256": basis["calibration_sha256"]}
    record = record_of(cell, measured, provenance(model, verified["sha256"], started) | used)
    write_json(cell.out, record)
    return record
