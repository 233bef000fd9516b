"""Bytes of caches: planned, and those that really exist."""

from typing import Any

from torch import Tensor
from transformers import Cache

from kvbudget.cache.cache import BudgetedCache
from kvbudget.cache.quantize import NUMBER_BYTES


def sizes(cache: Cache, itemsize: int) -> dict[str, float | None]:
    """Bytes of the keys and values of a filled cache and of all that it keeps with them.

    A plan counts the numbers of a budget alone: as wide as the model's (`itemsize`), 2 bytes where
    they are packed. What has no budget has no plan.
    """
    if not isinstance(cache, BudgetedCache):
        held = sum(_bytes(value) for layer in cache.layers for value in vars(layer).values())
        return {"allocated_bytes": held, "planned_bytes": None, "over_plan": None}
    held = cache.allocated_bytes()
    if cache.plan.budget is None:
        return {"allocated_bytes": held, "planned_bytes": None, "over_plan": None}
    planned = cache.planned_bytes(itemsize if cache.plan.codec is None else NUMBER_BYTES)
    return {"allocated_bytes": held, "planned_bytes": planned, "over_plan": held / planned}


def _bytes(value: Any) -> int:
    """Of tensors, alone or in tuples; those made of others, as quantisers make them, too."""
    if isinstance(value, tuple):
        return sum(map(_bytes, value))
    if not isinstance(value, Tensor):
        return 0
    if hasattr(value, "__tensor_flatten__"):
        names, _ = value.__tensor_flatten__()
        return sum(_bytes(getattr(value, name)) for name in names)
    return value.numel() * value.element_size()
