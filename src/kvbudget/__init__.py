"""Head-aware dynamic KV-cache budgeting."""

import importlib

from kvbudget.errors import UserError

__all__ = ["UserError", "attach", "make_cache"]


def __getattr__(name: str):
    """`attach` and `make_cache` on demand, so that planning a study does not import torch."""
    if name in ("attach", "make_cache"):
        return getattr(importlib.import_module("kvbudget.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
