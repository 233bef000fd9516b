"""The kinds of tasks, and what planning has to know of each. Imports no torch.

A kind is one file of this package and one entry here. The file has `Options`, a dataclass of its
options, `make(request, options)`, which gives contexts with their questions, and
`score(output, references)`.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from kvbudget.errors import UserError
from kvbudget.options import Option, declared, suggest


@dataclass(frozen=True)
class Kind:
    """What is known of a kind of task without its code.

    Attributes:
        module: its module in this package.
        protocol: how contexts are read and measured, an entry of `kvbudget.run.protocols`.
        throughout: whether the cache is bounded from the first token on, not by a whole prompt.
        prompt_share: share of the length that is the prompt; the rest is the answer.
        passes: forward passes, about, for answers that are written together, or for each token of a
            translation's source.
    """

    module: str
    protocol: str = "questions"
    throughout: bool = False
    prompt_share: float = 1.0
    passes: int = 15

    @property
    def facts(self) -> list[Any]:
        """What a result depends on beside the task's code and options."""
        return [self.module, self.protocol, self.throughout, self.prompt_share]


KINDS: dict[str, Kind] = {
    "niah": Kind("niah"),
    "vt": Kind("vt", passes=30),
    "cwe": Kind("cwe", passes=100),
    "fwe": Kind("fwe", passes=50),
    "perplexity": Kind("perplexity", throughout=True, prompt_share=0.5),
    "streaming": Kind("streaming", protocol="translation", throughout=True, passes=3),
}


def kind(name: str) -> Kind:
    """A kind of task by name. Raises `UserError` for an unknown one."""
    if name not in KINDS:
        raise UserError(
            f"unknown kind of task {name!r}{suggest(name, KINDS)}; known are {', '.join(KINDS)}"
        )
    return KINDS[name]


def module_of(name: str) -> str:
    """Full module name of a kind of task."""
    return f"{__package__}.{kind(name).module}"


def load(name: str) -> ModuleType:
    """The module of a kind of task."""
    return importlib.import_module(module_of(name))


def options_of(name: str) -> dict[str, Option]:
    """The options of a kind of task."""
    return declared(load(name).Options)


def options_from(name: str, spec: Mapping[str, Any]) -> Any:
    """The options of a kind of task, as its `make` takes them, from a spec that has them all."""
    return load(name).Options(**{key: spec[key] for key in options_of(name)})
