"""What aggregation refuses of cells together. One error lists all problems."""

import json
import shlex
import statistics
from collections import defaultdict
from pathlib import Path

from kvbudget.errors import UserError
from kvbudget.study.plan import FULL, Study
from kvbudget.study.records import Cell, Problem

BYTES_TOLERANCE = 0.02
# What a cache may hold above its plan: in each slot its position and the sums of at most two
# signals; tokens that gather before they are evicted, as a share of the budget; and what a head has
# once, in tokens (saved sinks, a mean key, the least that gathers).
INDEX_BYTES = 12
STRIDE = 1 / 256
SPARE_TOKENS = 8


def unequal_bytes(cells: list[Cell]) -> list[Problem]:
    """Methods that evict must plan the same bytes at the same budget, within 2%."""
    groups = defaultdict(list)
    for cell in cells:
        if cell.planned.policy != FULL:
            p = cell.planned
            groups[p.model, p.task, p.length, p.budget].append(cell)
    problems = []
    for members in groups.values():
        planned = [cell.record["memory"]["cache_bytes_planned"] for cell in members]
        if max(planned) > (1 + BYTES_TOLERANCE) * min(planned):
            problems += [
                Problem(
                    cell.planned.path, f"plans {size} bytes; equal budgets must plan equal bytes"
                )
                for cell, size in zip(members, planned, strict=True)
            ]
    return problems


def beyond_plan(cells: list[Cell]) -> list[Problem]:
    """What a method that evicts holds must be what it planned, whatever it stores numbers in; of a
    cache of others, which may mask what it evicts, what it claims to hold."""
    problems = []
    for cell in cells:
        if cell.planned.policy == FULL:
            continue
        memory = cell.record["memory"]
        planned = memory["cache_bytes_planned"]
        allocated = memory.get("cache_bytes_claimed", memory["cache_bytes_allocated"])
        budget = statistics.mean(sample["budget_tokens"] for sample in cell.samples)
        slots = sum(map(sum, cell.record["allocation"]["slots"]))
        allowed = planned * (1 + STRIDE + SPARE_TOKENS / budget) + slots * INDEX_BYTES
        if allocated > allowed:
            reason = (
                f"holds {allocated} bytes and planned {planned}; positions, sums and a stride"
                f" explain no more than {allowed:.0f}"
            )
            problems.append(Problem(cell.planned.path, reason))
    return problems


def unpaired(cells: list[Cell]) -> list[Problem]:
    """All methods must have answered the same questions on the same contexts."""
    groups = defaultdict(list)
    for cell in cells:
        groups[cell.planned.model, cell.planned.task, cell.planned.length].append(cell)
    problems = []
    for members in groups.values():
        asked = [sorted((s["context_id"], s["id"]) for s in cell.samples) for cell in members]
        usual = max(asked, key=asked.count)
        problems += [
            Problem(cell.planned.path, "asked other questions than the cells it is paired with")
            for cell, questions in zip(members, asked, strict=True)
            if questions != usual
        ]
    return problems


def other_weights(cells: list[Cell], root: Path) -> list[Problem]:
    """A record's weights must be those that were verified."""
    problems = []
    for cell in cells:
        file = root / cell.planned.verified
        if not file.exists():
            continue
        verified = json.loads(file.read_text(encoding="utf-8"))["sha256"]
        measured = cell.record["provenance"]["model_sha256"]
        if measured != verified:
            reason = f"measured with weights {measured[:12]}, verified are {verified[:12]}"
            problems.append(Problem(cell.planned.path, reason))
    return problems


def refuse(study: Study, problems: list[Problem]) -> None:
    """Raise one error that lists every problem and the commands that mend them."""
    if not problems:
        return
    lines = [f"study {study.name} cannot be aggregated:"]
    lines += [f"  {problem.path}: {problem.reason}" for problem in problems]
    missing = list(dict.fromkeys(p.path for p in problems if p.missing))
    wrong = list(dict.fromkeys(p.path for p in problems if not p.missing))
    if missing:
        lines += ["measure the missing cells:", f"  {study.run(missing)}"]
    if wrong:
        again = f"rm -f {shlex.join(wrong)} && {study.run(wrong)}"
        lines += ["measure the wrong cells again:", f"  {again}"]
    raise UserError("\n".join(lines))
