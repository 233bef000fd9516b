"""Which options policies, tasks and profiles have, so that a misspelt one stops the planning.

They are read from source, as importing those modules would import torch.
"""

import ast
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kvbudget.errors import UserError


def constant(file: Path, name: str) -> Any:
    """Value of a module's constant, written as a literal. Raises KeyError if there is none."""
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if ast.unparse(target) == name:
                return ast.literal_eval(node.value)
    raise KeyError(f"{file} has no constant {name}")


def parameters(file: Path) -> dict[str, Any]:
    """Parameters of the policy that a module defines, with their defaults."""
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.ClassDef) and "Policy" in map(ast.unparse, node.bases):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    names = [argument.arg for argument in method.args.args[1:]]
                    values = [ast.literal_eval(default) for default in method.args.defaults]
                    return dict(zip(names, values, strict=True))
    return {}


def check(where: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse options that are unknown, of another type than their default, or counts below 1.

    Where the default is `auto`, a number from 0 on may stand for it.

    Raises:
        UserError: naming `where`, the option and the remedy.
    """
    for name, value in given.items():
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise UserError(
                f"{where}: unknown option {name!r}{suggest(name, defaults)}; it has {known}"
            )
        default = defaults[name]
        if default == "auto":
            if value != "auto" and (type(value) is not int or value < 0):
                raise UserError(f"{where}: {name} must be auto or 0 or more, not {value!r}")
        elif type(value) is not type(default):
            kind = type(default).__name__
            raise UserError(f"{where}: {name} must be of type {kind}, not {value!r}")
        elif type(value) is int and name != "seed" and value < 1:
            raise UserError(f"{where}: {name} must be at least 1, not {value}")


def suggest(word: str, known: Iterable[str]) -> str:
    """`, did you mean …?` if one of the known words is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
