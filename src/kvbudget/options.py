"""Options of methods, tasks and calibrations: defaults, allowed values and what they mean.

One declaration serves the checks, the defaults and the schema of the configuration. No torch.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema

from kvbudget.errors import UserError


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        default: its value where none is given.
        about: what it means, in a sentence.
        schema: JSON schema of its values.
    """

    default: Any
    about: str
    schema: Mapping[str, Any]


def count(default: int, about: str, least: int = 1) -> Option:
    """An integer from `least` on."""
    return Option(default, about, {"type": "integer", "minimum": least})


def share(default: float | None, about: str) -> Option:
    """A number from 0 to 1; a default of None is worked out by who takes the option."""
    kind = "number" if default is not None else ["number", "null"]
    return Option(default, about, {"type": kind, "minimum": 0, "maximum": 1})


def choice(default: str, about: str, values: Iterable[str]) -> Option:
    """One of some words."""
    return Option(default, about, {"enum": list(values)})


def auto(about: str) -> Option:
    """`auto`, or an integer of 0 or more in place of the one that is found."""
    return Option("auto", about, {"oneOf": [{"const": "auto"}, {"type": "integer", "minimum": 0}]})


def text(default: str, about: str) -> Option:
    """Any text."""
    return Option(default, about, {"type": "string"})


def arguments(about: str) -> Option:
    """Names and values that are handed on as they are."""
    return Option({}, about, {"type": "object"})


def field(option: Option) -> Any:
    """A field of a dataclass of options."""
    return dataclasses.field(default=option.default, metadata={"option": option})


def declared(cls: type) -> dict[str, Option]:
    """The options that a dataclass of `field`s declares."""
    return {each.name: each.metadata["option"] for each in dataclasses.fields(cls)}


def filled(where: str, given: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """The defaults of some options, overlaid with those given.

    Raises:
        UserError: an option that is unknown or has a value that it cannot have, naming `where`, the
            option and the remedy.
    """
    for name, value in given.items():
        if name not in known:
            raise UserError(
                f"{where}: unknown option {name!r}{suggest(name, known)}; it has "
                f"{', '.join(known) or 'none'}"
            )
        if jsonschema.Draft202012Validator(known[name].schema).is_valid(value):
            continue
        raise UserError(f"{where}: {name} must be {spoken(known[name].schema)}, not {value!r}")
    return {name: option.default for name, option in known.items()} | dict(given)


def spoken(schema: Mapping[str, Any]) -> str:
    """What a schema of this module asks for, in words."""
    for either in ("oneOf", "anyOf"):
        if either in schema:
            return " or ".join(dict.fromkeys(map(spoken, schema[either])))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    if "maximum" in schema:
        return f"a number from {schema['minimum']} to {schema['maximum']}"
    if "minimum" in schema:
        return f"an integer of {schema['minimum']} or more"
    return "names with values" if schema["type"] == "object" else f"a {schema['type']}"


def suggest(word: str, known: Iterable[str]) -> str:
    """`, did you mean …?` if one of the known words is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
