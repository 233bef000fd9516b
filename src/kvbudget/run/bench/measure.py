"""All measurements of one model, one after the other.

Decode steps are measured in every dtype, the rest in the first: a processor without half-precision
instructions needs minutes for a half-precision prefill.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from kvbudget.api import attach
from kvbudget.run.bench import decode, parts, peak, prefill
from kvbudget.run.bench.subjects import EVICTING, STOCK, theirs
from kvbudget.run.record import provenance
from kvbudget.sources.load import load

SCHEMA = 3
#: Whose decode steps are taken apart.
PROFILED = ("streaming-llm", "head-aware", "head-aware-4bit")


@dataclass(frozen=True)
class Lengths:
    """What is measured: tokens before a decode step, of a prefill, of a prefill in pieces whose
    peak is taken, and before a step that is taken apart; and rounds of decode steps."""

    decode: Sequence[int]
    prefill: Sequence[int]
    memory: Sequence[int]
    parts: Sequence[int]
    rounds: int

    def steps_alone(self) -> "Lengths":
        """The same without what takes more than decode steps."""
        return replace(self, prefill=(), memory=(), parts=())


def measure(
    model_dir: Path, verified: Path, dtypes: Sequence[str], lengths: Lengths
) -> Iterator[dict[str, Any]]:
    """What is known so far, after each measurement.

    `rows` has one for each dtype, number of tokens and subject, `parts` one for each part of a
    step; `left_out` says which subjects are not there, and why; `provenance` is by dtype.
    """
    sha256 = json.loads(verified.read_text(encoding="utf-8"))["sha256"]
    found = Found(model_dir.name)
    for dtype in dtypes:
        started = time.time()
        model, _ = load(model_dir, dtype)
        attach(model)
        found.left_out = theirs(model)[1]
        wanted = lengths if dtype == dtypes[0] else lengths.steps_alone()
        for rows in in_turn(model, wanted):
            found.add(dtype, rows)
            yield found.told()
        for tokens in wanted.memory:
            for name in (STOCK, *EVICTING):
                found.add(dtype, [peak.measure(model_dir, dtype, name, tokens)])
                yield found.told()
        found.provenance[dtype] = provenance(model, sha256, started)
        yield found.told()


@torch.inference_mode()
def in_turn(model: PreTrainedModel, lengths: Lengths) -> Iterator[list[dict]]:
    """The rows of one measurement after the other of those that this process makes."""
    for tokens in lengths.decode:
        yield decode.measure(model, tokens, lengths.rounds)
    for tokens in lengths.parts:
        yield parts.measure(model, tokens, PROFILED)
    for tokens in lengths.prefill:
        yield prefill.measure(model, tokens)


class Found:
    """What has been measured: rows of the same dtype, tokens and subject are one."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.left_out: dict[str, str] = {}
        self.provenance: dict[str, dict] = {}
        self._rows: dict[tuple, dict] = {}

    def add(self, dtype: str, rows: list[dict]) -> None:
        for row in rows:
            key = dtype, row["tokens"], row["subject"], row.get("part")
            self._rows[key] = {**self._rows.get(key, {"dtype": dtype}), **row}

    def told(self) -> dict[str, Any]:
        """As it is written to a file."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "left_out": self.left_out,
            "rows": [row for row in self._rows.values() if "part" not in row],
            "parts": [row for row in self._rows.values() if "part" in row],
            "provenance": self.provenance,
        }
