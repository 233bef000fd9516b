"""Methods of keeping tokens, one small module each.

Modules are imported by name, only when asked for, so that a cell depends on the code of its own
method alone.
"""

import importlib
import inspect

from kvbudget.errors import UserError
from kvbudget.policies.base import Policy

MODULES = {
    "full": "full:Full",
    "h2o": "h2o:H2O",
    "streaming-llm": "streaming_llm:StreamingLLM",
    "snapkv": "snapkv:SnapKV",
    "keydiff": "keydiff:KeyDiff",
    "kvzip": "kvzip:KVzip",
    "head-aware": "head_aware:HeadAware",
}


def module_of(policy: str) -> str:
    """Full module name of a policy. Raises `UserError` for an unknown one."""
    if policy not in MODULES:
        raise UserError(f"unknown policy {policy!r}; known are {', '.join(MODULES)}")
    return f"{__name__}.{MODULES[policy].split(':')[0]}"


def make_policy(policy: str, **options) -> Policy:
    """A policy by name. Raises `UserError` for an unknown name or option."""
    cls = getattr(importlib.import_module(module_of(policy)), MODULES[policy].split(":")[1])
    known = list(inspect.signature(cls).parameters)
    for name in options:
        if name not in known:
            raise UserError(
                f"policy {policy!r} has no option {name!r}; it has {', '.join(known) or 'none'}"
            )
    return cls(**options)
