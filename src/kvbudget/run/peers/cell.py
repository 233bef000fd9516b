"""One cell of kvpress: ours are its contexts and the marks of its answers, the rest is its own.

The record is that of any cell, with `cache_bytes_claimed` beside what is planned and allocated: the
bytes of what can be seen. Several presses mask what they evict and hold everything.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from kvbudget.cache.budget import Geometry, budget_in_tokens
from kvbudget.errors import UserError
from kvbudget.run.answer import Answer, Marker, given_answers, on_top_of
from kvbudget.run.files import write_json
from kvbudget.run.job import Cell
from kvbudget.run.machine import machine
from kvbudget.run.peers import environment, worker
from kvbudget.run.record import made, record_of
from kvbudget.run.resume import finished
from kvbudget.run.samples import samples_of
from kvbudget.run.summary import summarise
from kvbudget.sources.device import device as default_device
from kvbudget.sources.threads import threads
from kvbudget.sources.verified import read as read_verified
from kvbudget.tasks import registry as tasks
from kvbudget.tasks.request import Context

_SOURCE = Path(__file__).parents[3]


def run_peer(cell: Cell, count: int | None = None) -> dict:
    """Compute the record of a cell whose method is kvpress's, and write it.

    Args:
        cell: what is asked for.
        count: contexts, of the first; None measures all.

    Raises:
        UserError: there is no environment to measure with, the cell does not fit its model, or
            kvpress failed.
    """
    spec, started = cell.spec, time.time()
    python = environment.python()
    verified = read_verified(cell.verified, cell.model_identity)
    geometry = _geometry(spec, verified)
    tokenizer = AutoTokenizer.from_pretrained(cell.model_dir, local_files_only=True)
    contexts = samples_of(spec, tokenizer, cell.text)[:count]
    torch.set_num_threads(threads())
    side = cell.out.with_suffix(".contexts.jsonl")
    here = machine(torch.device(default_device()))
    parts = finished(side, {"identity": cell.identity, "calibration_sha256": None, **here})
    lines = _work(python, _request(cell, contexts[len(parts) :]))
    place = next(lines)
    marker = Marker(tokenizer, tasks.load(spec["task"]["kind"]), spec["dtype"])
    itemsize = getattr(torch, spec["dtype"]).itemsize
    with side.open("a", encoding="utf-8") as log:
        left = tqdm(contexts[len(parts) :], unit="context")
        for context, found in zip(left, lines, strict=True):
            part = _part(context, found, _budget(spec, context), geometry, itemsize, marker)
            log.write(json.dumps(part) + "\n")
            log.flush()
            parts.append(part)
    measured = summarise(parts)
    measured["timing"]["load_s"] = place["load_s"]
    measured["allocation"]["layers"] = list(geometry.layers)
    provenance = {
        "versions": place["versions"],
        "model_sha256": verified["sha256"],
        **place["machine"],
        "dtype": spec["dtype"],
        **made(started),
        "calibration_sha256": None,
    }
    record = record_of(cell, measured, provenance)
    write_json(cell.out, record)
    return record


def _geometry(spec: dict[str, Any], verified: dict[str, Any]) -> Geometry:
    """The shape of a model that kvpress compresses as a whole."""
    if set(verified["layer_types"]) != {"full_attention"}:
        raise UserError(
            f"model {spec['model']} has layers with a sliding window, on which method 'kvpress' is "
            "not measured; use another model"
        )
    shape = (verified[key] for key in ("kv_heads", "query_heads", "head_dim"))
    return Geometry(tuple(range(verified["layers"])), *shape)


def _budget(spec: dict[str, Any], context: Context) -> int:
    """Tokens of a KV head, in the mean."""
    return budget_in_tokens(spec["budget"], len(context.ids))


def _request(cell: Cell, contexts: list[Context]) -> worker.Request:
    spec = cell.spec
    return worker.Request(
        model_dir=str(cell.model_dir),
        dtype=spec["dtype"],
        device=default_device(),
        threads=threads(),
        press={key: spec["method"][key] for key in ("press", "arguments", "safeguard")},
        contexts=[
            {
                "ids": context.ids,
                "budget": _budget(spec, context),
                "questions": [
                    {
                        "ids": question.ids,
                        "answers": given_answers(question),
                        "max_new_tokens": question.max_new_tokens,
                    }
                    for question in context.questions
                ],
            }
            for context in contexts
        ],
    )


def _work(python: Path, request: worker.Request) -> Iterator[dict[str, Any]]:
    """The lines that the other Python answers with, as they come."""
    with subprocess.Popen(
        [python, "-m", worker.__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(_SOURCE), "HF_HUB_OFFLINE": "1"},
        text=True,
    ) as process:
        json.dump(vars(request), process.stdin)
        process.stdin.close()
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise UserError(
            f"kvpress ended with status {process.returncode} at {request.press['press']}, as told "
            "above; leave the press out, or give it other arguments"
        )


def _part(
    context: Context,
    found: dict[str, Any],
    budget: int,
    geometry: Geometry,
    itemsize: int,
    marker: Marker,
) -> dict[str, Any]:
    """What a context gives, as `kvbudget.run.questions.run` has it."""
    answers = [Answer(each["tokens"], each["log_likelihoods"]) for each in found["answers"]]
    pairs = list(zip(context.questions, answers, strict=True))
    token_bytes = geometry.planned_bytes(1, itemsize)
    seen = sum(map(sum, found["slots"]))
    return {
        "samples": [marker.sample(context, *pair, budget) for pair in pairs],
        "memory": {
            "cache_bytes_planned": budget * token_bytes,
            "cache_bytes_claimed": seen * token_bytes // (len(geometry.layers) * geometry.kv_heads),
            "cache_bytes_allocated": found["allocated_bytes"],
            "cache_bytes_full": len(context.ids) * token_bytes,
            "cache_bytes_sliding": 0,
            **on_top_of(pairs, token_bytes),
            "peak_rss_bytes": found["peak_rss_bytes"],
            "peak_cuda_bytes": found["peak_cuda_bytes"],
        },
        "timing": {"prefill_s": found["prefill_s"], "decode_s": found["decode_s"]},
        "slots": found["slots"],
    }
