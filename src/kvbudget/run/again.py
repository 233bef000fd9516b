"""The first contexts of a cell, measured again to be compared with its record.

It stands apart from `kvbudget.run.cell`: what only looks at records must not be part of the code
that they are known by.
"""

import itertools
import json
import time

import torch

from kvbudget.api import attach
from kvbudget.run import protocols
from kvbudget.run.cell import results
from kvbudget.run.files import write_json
from kvbudget.run.job import WARM_UP, Cell
from kvbudget.run.machine import machine
from kvbudget.run.record import provenance, record_of
from kvbudget.run.runner import Runner
from kvbudget.run.samples import samples_of
from kvbudget.run.summary import summarise
from kvbudget.sources.load import load
from kvbudget.sources.verified import read as read_verified
from kvbudget.tasks import registry as tasks


@torch.inference_mode()
def first_contexts(cell: Cell, count: int) -> None:
    """Write the record of a cell as it is after `count` contexts, each read by the cell itself."""
    spec, started = cell.spec, time.time()
    verified = read_verified(cell.verified, cell.model_identity)
    calibration = json.loads(cell.calibration.read_text()) if cell.calibration else None
    model, tokenizer = load(cell.model_dir, spec["dtype"])
    contexts = samples_of(spec, tokenizer, cell.text)
    kind = spec["task"]["kind"]
    method = (spec["method"], spec["budget"], calibration, spec["task"].get("chunk"))
    runner = Runner(attach(model), tokenizer, tasks.load(kind), *method)
    prompt = contexts[0].ids
    runner.read(runner.cache(len(prompt)), prompt[:WARM_UP])
    protocol = protocols.load(tasks.kind(kind).protocol)
    side, basis = cell.out.with_suffix(".contexts.jsonl"), machine(model.device)
    found = results(protocol, runner, contexts, side, basis, None)
    measured = summarise(list(itertools.islice(found, count)))
    write_json(cell.out, record_of(cell, measured, provenance(model, verified["sha256"], started)))
    side.unlink()
