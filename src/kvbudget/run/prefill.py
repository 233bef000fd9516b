"""Record the contexts of a place for all its cells: a model, a text and a spec in; a folder out."""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from kvbudget.api import attach
from kvbudget.cache.cache import geometry_of
from kvbudget.cache.positions import rotations_of
from kvbudget.cache.prefill import record
from kvbudget.cache.signals import Signal
from kvbudget.errors import UserError
from kvbudget.policies.make import signal_class
from kvbudget.run import prefills
from kvbudget.run.files import replace_text
from kvbudget.run.job import Job
from kvbudget.run.samples import samples_of
from kvbudget.sources.load import load
from kvbudget.sources.verified import read as read_verified


@dataclass(frozen=True, kw_only=True)
class Prefills(Job):
    """What a place is recorded from, into a folder. Its spec is all that the contexts depend on:
    model, dtype, task, length, samples and so on; and `signals`, those by which some method watches
    them.

    Attributes:
        disk_gb: most that all folders beside this one and in it may take; contexts beyond are left
            to the cells.
        store: folder of all places.
    """

    disk_gb: float
    store: Path


@torch.inference_mode()
def run_prefills(job: Prefills) -> None:
    """Record contexts as long as there is room, and say how many they are."""
    sha256 = read_verified(job.verified, job.model_identity)["sha256"]
    model, tokenizer = load(job.model_dir, job.spec["dtype"])
    attach(model)
    contexts = samples_of(job.spec, tokenizer, job.text)
    signals = _possible(model, map(signal_class, job.spec["signals"]))
    facts = prefills.facts(model, sha256)
    job.out.mkdir(parents=True, exist_ok=True)
    for index, context in enumerate(tqdm(contexts, unit="context")):
        path = prefills.file_of(job.out, index)
        record(model, context.ids, signals, path, facts)
        if not _fits(path, job):
            path.unlink()
            print(f"no room for more than {index} of {len(contexts)} contexts; cells read the rest")
            contexts = contexts[:index]
            break
    # Into the folder only if it is there still: a run that outlived its workflow leaves nothing.
    replace_text(job.out / prefills.MANIFEST, json.dumps({"contexts": len(contexts)}))


def _possible(model: PreTrainedModel, signals: Iterable[type[Signal]]) -> Sequence[type[Signal]]:
    """Of some signals, those that a model allows: that one method fails must not stop others."""
    signals = list(signals)
    if any(each.unrotates for each in signals):
        try:
            rotations_of(model, geometry_of(model).layers)
        except UserError as error:
            print(f"some signals are not recorded: {error}")
            return [each for each in signals if not each.unrotates]
    return signals


def _fits(newest: Path, job: Prefills) -> bool:
    """Whether the places together keep within their bound, and leave the disk room for as much as
    the newest file again."""
    used = sum(
        _size(Path(folder, name)) for folder, _, names in os.walk(job.store) for name in names
    )
    return used <= job.disk_gb * 1e9 and shutil.disk_usage(job.out).free > _size(newest)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # of a place that was given back just now
        return 0
