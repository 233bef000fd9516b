"""A policy by the name and options of its method."""

import importlib

from kvbudget.cache.policy import Policy
from kvbudget.options import filled
from kvbudget.policies.registry import method, module_of


def make_policy(name: str, calibration: dict | None = None, **options) -> Policy:
    """The policy of a method. Raises `UserError` for an unknown name or option."""
    known = method(name)
    options = filled(f"method {name!r}", options, known.options)
    if known.calibrated:
        options["calibration"] = calibration
    cls = getattr(importlib.import_module(module_of(name)), known.module.split(":")[1])
    return cls(**options)
