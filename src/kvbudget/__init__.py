"""Head-aware dynamic KV-cache budgeting."""

import importlib

from kvbudget.errors import UserError

__all__ = ["UserError", "attach", "calibrate_model", "load_cache", "make_cache"]


def __getattr__(name: str):
    """What needs torch on demand, so that planning a study does not import it."""
    if name in ("attach", "make_cache"):
        return getattr(importlib.import_module("kvbudget.api"), name)
    if name == "calibrate_model":
        return importlib.import_module("kvbudget.run.calibrate").calibrate_model
    if name == "load_cache":
        return importlib.import_module("kvbudget.loading").load_cache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
