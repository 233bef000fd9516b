"""Tasks: what a model is asked, at an exact length, and how its answer is scored.

A task is a module with

    make(tokenizer, passages, *, length, contexts, questions, seed, split, options)
        -> list[kvbudget.tasks.base.Context]
    score(output, references) -> float

and, where contexts are not just read and asked about, how one is measured in their place:

    run(runner, context) -> dict, as kvbudget.cell.Runner.run

A new one is a file here and a line in `KINDS`.
"""

import importlib
from types import ModuleType

from kvbudget.errors import UserError

# Names, not imports: a cell's digest then covers the one task that it runs, and no other.
KINDS = {
    "niah": "kvbudget.tasks.niah",
    "vt": "kvbudget.tasks.vt",
    "cwe": "kvbudget.tasks.cwe",
    "fwe": "kvbudget.tasks.fwe",
    "perplexity": "kvbudget.tasks.perplexity",
    "streaming": "kvbudget.tasks.streaming",
}


def get(kind: str) -> ModuleType:
    """The module of a task kind, as `kind:` in the config names it."""
    if kind not in KINDS:
        raise UserError(f"tasks: unknown kind {kind!r}; use one of {', '.join(KINDS)}")
    return importlib.import_module(KINDS[kind])
