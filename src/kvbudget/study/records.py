"""The records that cells left: read, checked one by one, and beside their plan."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kvbudget.study.plan import Calibration, Planned, Study

SCHEMA = 1
LENGTH_TOLERANCE = 0.01
MEMORY = ("cache_bytes_planned", "cache_bytes_allocated", "cache_bytes_full")


@dataclass(frozen=True)
class Cell:
    """A planned cell with the record it left."""

    planned: Planned
    record: dict = field(repr=False)

    @property
    def samples(self) -> list[dict]:
        return self.record["samples"]


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one result. `missing` ones are measured, others measured again."""

    path: str
    reason: str
    missing: bool = False


def load(study: Study) -> tuple[list[Cell], list[Problem]]:
    """Read every record of the plan; what cannot be used is a problem, not a cell."""
    cells, problems = [], []
    for planned in study.cells:
        file = study.root / planned.path
        if not file.exists():
            problems.append(Problem(planned.path, "no record", missing=True))
            continue
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            found = [Problem(planned.path, reason) for reason in _faults(planned, record)]
        except ValueError as error:
            found = [Problem(planned.path, f"not JSON ({error})")]
        except (KeyError, TypeError, AttributeError) as error:
            found = [Problem(planned.path, f"not a record of schema {SCHEMA} ({error!r})")]
        problems += found
        if not found:
            cells.append(Cell(planned, record))
    return cells, problems


def attestations(study: Study, planned: Planned | Calibration) -> list[dict[str, Any]]:
    """What is noted of each time that a result was computed again and came out the same: `code`,
    `date`, `contexts` (of a cell), `versions` and `device`."""
    try:
        text = (study.root / planned.attested).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return json.loads(text)["attested"]


def _faults(planned: Planned, record: dict) -> Iterable[str]:
    if record["schema"] != SCHEMA:
        yield f"schema {record['schema']}, not {SCHEMA}"
        return
    wanted = (planned.spec, planned.code, planned.identity)
    if (record["spec"], record["code"], record["identity"]) != wanted:
        yield "holds the record of another cell"
    contexts = len({sample["context_id"] for sample in record["samples"]})
    if contexts != planned.spec["samples"]["contexts"]:
        yield f"holds {contexts} contexts, the plan has {planned.spec['samples']['contexts']}"
    yield from _not_finite(record)
    yield from _wrong_lengths(planned, record["samples"])


def _not_finite(record: dict) -> Iterable[str]:
    values = [("nll of " + s["id"], s["nll"], True) for s in record["samples"]]
    values += [("score of " + s["id"], s["score"], False) for s in record["samples"]]
    values += [(name, record["memory"][name], True) for name in MEMORY]
    values += [(n, v, False) for n, v in record["memory"].items() if n not in MEMORY]
    values += [(n, v, False) for n, v in record["timing"].items()]
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
