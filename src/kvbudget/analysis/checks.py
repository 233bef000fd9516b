"""What aggregation refuses. Every check returns problems; one error lists them all."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kvbudget.errors import UserError
from kvbudget.study.records import FULL, SCHEMA, Cell, Planned, Study

BYTES_TOLERANCE = 0.02
LENGTH_TOLERANCE = 0.01
# What a cache may hold above its plan: in each slot its position and the sums of at most two
# signals; tokens that gather before they are evicted, as a share of the budget; and what a head has
# once, in tokens (saved sinks, a mean key, the least that gathers).
INDEX_BYTES = 12
STRIDE = 1 / 256
SPARE_TOKENS = 8
MEMORY = ("cache_bytes_planned", "cache_bytes_allocated", "cache_bytes_full")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one cell. `missing` cells are measured, others measured again."""

    path: str
    reason: str
    missing: bool = False


def load(study: Study) -> tuple[list[Cell], list[Problem]]:
    """Read every record of the plan; what cannot be used is a problem, not a cell."""
    cells, problems = [], []
    for planned in study.cells:
        file = study.record_file(planned)
        if not file.exists():
            problems.append(Problem(planned.path, "no record", missing=True))
            continue
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            found = [Problem(planned.path, reason) for reason in _faults(study, planned, record)]
        except ValueError as error:
            found = [Problem(planned.path, f"not JSON ({error})")]
        except (KeyError, TypeError, AttributeError) as error:
            found = [Problem(planned.path, f"not a record of schema {SCHEMA} ({error!r})")]
        problems += found
        if not found:
            cells.append(Cell(planned, record))
    return cells, problems


def _faults(study: Study, planned: Planned, record: dict) -> Iterable[str]:
    if record["schema"] != SCHEMA:
        yield f"schema {record['schema']}, not {SCHEMA}"
        return
    if record["spec"] != planned.spec:
        yield other_spec(record["spec"], planned.spec)
    if record["code"] != planned.code:
        yield other_code(study, record["code"], planned.code)
    contexts = len({sample["context_id"] for sample in record["samples"]})
    if contexts != planned.spec["samples"]["contexts"]:
        yield f"holds {contexts} contexts, the plan has {planned.spec['samples']['contexts']}"
    yield from _not_finite(record)
    yield from _wrong_lengths(planned, record["samples"])


def other_spec(found: dict, wanted: dict) -> str:
    """What a record's spec says otherwise than the plan, key by key."""
    old, new = dict(_flat(found)), dict(_flat(wanted))
    changed = [
        f"{key} was {old.get(key, 'absent')}, the plan has {new.get(key, 'none')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    return f"measured for another spec ({'; '.join(changed)})"


def _flat(value: object, key: str = "") -> Iterable[tuple[str, object]]:
    if not isinstance(value, dict):
        yield key, json.dumps(value)
        return
    for name, item in value.items():
        yield from _flat(item, f"{key}.{name}" if key else name)


def other_code(study: Study, found: str, wanted: str) -> str:
    """Which modules and libraries have changed since a record was measured, where it is known."""
    try:
        old, new = (
            json.loads((study.file.parent / "code" / f"{digest}.json").read_text(encoding="utf-8"))
            for digest in (found, wanted)
        )
    except (OSError, ValueError):
        return f"measured by other code ({found[:12]}, the plan has {wanted[:12]})"
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return f"measured by other code ({', '.join(changed)} changed since)"


def _not_finite(record: dict) -> Iterable[str]:
    values = [("nll of " + s["id"], s["nll"], True) for s in record["samples"]]
    values += [("score of " + s["id"], s["score"], False) for s in record["samples"]]
    values += [(name, record["memory"][name], True) for name in MEMORY]
    values += [(n, v, False) for n, v in record["memory"].items() if n not in MEMORY]
    values += [("prefill_s", record["timing"]["prefill_s"], True)]
    values += [(n, v, False) for n, v in record["timing"].items() if n != "prefill_s"]
    for name, value, needed in values:
        if value is None:
            if needed:
                yield f"{name} is missing"
        elif not math.isfinite(value):
            yield f"{name} is {value}"


def _wrong_lengths(planned: Planned, samples: list[dict]) -> Iterable[str]:
    tolerance = LENGTH_TOLERANCE * planned.prompt_tokens
    wrong = sorted(
        {
            s["prompt_tokens"]
            for s in samples
            if abs(s["prompt_tokens"] - planned.prompt_tokens) > tolerance
        }
    )
    if wrong:
        yield f"prompts of {', '.join(map(str, wrong))} tokens, over 1% off {planned.prompt_tokens}"


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
    """What a method that evicts holds must be what it planned, whatever it stores numbers in."""
    problems = []
    for cell in cells:
        if cell.planned.policy == FULL:
            continue
        planned = cell.record["memory"]["cache_bytes_planned"]
        allocated = cell.record["memory"]["cache_bytes_allocated"]
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


def mixed_codes(cells: list[Cell]) -> list[Problem]:
    """One policy on one kind of task is measured by one state of the code and libraries."""
    groups = defaultdict(list)
    for cell in cells:
        groups[cell.planned.policy, cell.planned.kind].append(cell)
    problems = []
    for (policy, kind), members in groups.items():
        codes = sorted({cell.record["code"][:12] for cell in members})
        if len(codes) > 1:
            problems += [
                Problem(c.planned.path, f"{policy} on {kind} mixes code digests {', '.join(codes)}")
                for c in members
            ]
    return problems


def other_weights(cells: list[Cell], models: Path | None) -> list[Problem]:
    """A record's weights must be those that were verified."""
    problems = []
    for cell in cells:
        file = models / f"{cell.planned.model}.verified.json" if models else None
        if file is None or not file.exists():
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
        lines += ["measure the missing cells:", f"  {study.command(missing)}"]
    if wrong:
        lines += ["measure the wrong cells again:", f"  {study.command(wrong, force=True)}"]
    raise UserError("\n".join(lines))
