"""A study's configuration: read as Snakemake reads it, checked, defaults filled in."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from kvbudget.errors import UserError
from kvbudget.options import spoken, suggest

BASE = Path("config.yaml")
STUDIES = Path("workflow/studies")
SCHEMA = Path("workflow/schemas/config.schema.yaml")


def read(study: str, root: Path = Path()) -> dict[str, Any]:
    """The checked configuration of a study.

    Args:
        study: `default`, the name of a file in workflow/studies/, or the path of any other file
            that is laid over config.yaml.
        root: the repository.

    Raises:
        UserError: there is no such file, or something in it is wrong.
    """
    config = _yaml(root / BASE)
    if (file := file_of(study, root)) is not None:
        config = overlaid(config, _yaml(file))
    return validate(config, _yaml(root / SCHEMA))


def file_of(study: str, root: Path = Path()) -> Path | None:
    """The file of a study that is laid over config.yaml; None for the default study."""
    if study == "default":
        return None
    known = {path.stem: path for path in sorted((root / STUDIES).glob("*.yaml"))}
    path = known.get(study, Path(study))
    if not path.is_file():
        raise UserError(
            f"there is no study {study!r}{suggest(study, known)}; name one of default, "
            f"{', '.join(known)}, or the path of a file of your own"
        )
    return path


def overlaid(config: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged, everything else is replaced, as Snakemake does."""
    merged = dict(config)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = overlaid(below, value) if both else value
    return merged


def validate(config: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Check a configuration against the JSON schema and fill in the schema's defaults.

    Raises:
        UserError: one line that names the key at fault, with a suggestion for a misspelt one.
    """
    filled = _with_defaults(json.loads(json.dumps(config)), schema)
    errors = jsonschema.Draft202012Validator(schema).iter_errors(filled)
    # Unknown keys first: a misspelt key also makes the right one go missing.
    error = min(errors, key=lambda e: (e.validator != "additionalProperties", e.path), default=None)
    if error is not None:
        raise UserError(_explain(error))
    return filled


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run this in the repository") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def _with_defaults(value: Any, schema: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        for key, below in properties.items():
            if key not in value and "default" in below:
                value[key] = json.loads(json.dumps(below["default"]))
        others = schema.get("additionalProperties")
        for key, item in value.items():
            below = properties.get(key, others)
            if isinstance(below, Mapping):
                value[key] = _with_defaults(item, below)
    elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        value = [_with_defaults(item, schema["items"]) for item in value]
    return value


def _explain(error: jsonschema.ValidationError) -> str:
    place = ": ".join(_steps(error.absolute_path)) or "the top level"
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = list(error.schema.get("properties", {}))
        unknown = next(key for key in error.instance if key not in known)
        return (
            f"config: unknown key {unknown!r} at {place}"
            f"{suggest(unknown, known)}; it knows {', '.join(known)}"
        )
    if "propertyNames" in error.absolute_schema_path:
        return f"config: {place}: bad name {error.instance!r}; use {error.schema['description']}"
    if error.validator in ("oneOf", "anyOf"):
        return f"config: {place} must be {spoken(error.schema)}, not {error.instance!r}"
    return f"config: {place}: {error.message}"


def _steps(path: Iterable[str | int]) -> Iterable[str]:
    for step in path:
        yield f"number {step + 1}" if isinstance(step, int) else step
