"""How a cell reads its contexts, by the name that a kind of task gives. Imports no torch."""

import importlib
from types import ModuleType

#: Modules with `run(runner, contexts, shared)`, which measures some contexts, of each of which
#: something may have been recorded, and `at_once(runner, contexts)`, how many it takes together.
#: Named, not imported: a cell depends on the code of its own protocol alone.
PROTOCOLS = {
    "questions": "kvbudget.run.questions",
    "translation": "kvbudget.run.streaming",
}


def load(name: str) -> ModuleType:
    """The module of a protocol."""
    return importlib.import_module(PROTOCOLS[name])
