"""The schema of the configuration, from what methods, tasks and calibrations declare."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from kvbudget.calibration.options import OPTIONS as CALIBRATION
from kvbudget.options import Option
from kvbudget.policies.registry import METHODS
from kvbudget.tasks import registry as tasks

_BASE = Path(__file__).with_name("schema.base.yaml")
_HEADER = "# Made by `kvbudget schema`; a test holds it to what the code declares.\n"


class _Plain(yaml.SafeDumper):
    """Writes what stands in two places twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def generate() -> dict[str, Any]:
    """The whole schema."""
    schema = yaml.safe_load(_BASE.read_text(encoding="utf-8"))
    of_method = schema["properties"]["methods"]["additionalProperties"]["properties"]
    of_method |= _union((name, method.options) for name, method in METHODS.items())
    of_task = schema["properties"]["tasks"]["additionalProperties"]["properties"]
    of_task |= _union((name, tasks.options_of(name)) for name in tasks.KINDS)
    of_calibration = schema["$defs"]["calibration"]["properties"]
    of_calibration |= {name: _property(option) for name, option in CALIBRATION.items()}
    return schema


def as_yaml() -> str:
    """The text of workflow/schemas/config.schema.yaml."""
    return _HEADER + yaml.dump(generate(), Dumper=_Plain, sort_keys=False, allow_unicode=True)


def _union(owners: Iterable[tuple[str, Mapping[str, Option]]]) -> dict[str, Any]:
    """Properties of all options, each with the names of its owners. Which of them an owner has is
    checked later: a misspelt one is told with those that there are."""
    owned: dict[str, list[tuple[str, Option]]] = {}
    for owner, options in owners:
        for name, option in options.items():
            owned.setdefault(name, []).append((owner, option))
    return {name: _merged(each) for name, each in owned.items()}


def _merged(owned: list[tuple[str, Option]]) -> dict[str, Any]:
    owners = ", ".join(owner for owner, _ in owned)
    schemas: list[Mapping[str, Any]] = []
    for _, option in owned:
        if option.schema not in schemas:
            schemas.append(option.schema)
    values = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"description": f"{owners}. {owned[0][1].about}", **values}


def _property(option: Option) -> dict[str, Any]:
    return {"description": option.about, **option.schema}
