"""What methods bring, by the names under which planning knows it: policies and signals."""

import importlib
from typing import Any

from kvbudget.cache.policy import Policy
from kvbudget.cache.signals import Signal
from kvbudget.options import filled
from kvbudget.policies.fitted import Fitted
from kvbudget.policies.registry import located, method


def make_policy(name: str, calibration: Fitted | None = None, **options) -> Policy:
    """The policy of a method. Raises `UserError` for an unknown name or option."""
    known = method(name)
    options = filled(f"method {name!r}", options, known.options)
    if known.calibrated:
        options["calibration"] = calibration
    return _class(known.module)(**options)


def signal_class(name: str) -> type[Signal]:
    """The class of a signal that a method declares, `module:Class`."""
    return _class(name)


def _class(name: str) -> Any:
    module, cls = located(name)
    return getattr(importlib.import_module(module), cls)
