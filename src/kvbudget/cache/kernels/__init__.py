"""Kernels of a decode step: attention straight from the slots of a layer.

They compute what `kvbudget.cache.ragged` defines with PyTorch's own operations, which runs wherever
they cannot. Each is in a module of its own, by the package that compiles it, and loaded if that
package is installed: numba on a CPU, Triton on a GPU.
"""

import functools
import importlib
import importlib.util
import warnings
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from kvbudget.cache.slots import Slots


class Attend(Protocol):
    """Attention of decode steps to every stored token.

    Args:
        query: `(batch, kv_heads, rows, head_dim)`, for each KV head the query heads that read it,
            of one sequence or of several that share what is stored; turned where it is packed.
        slots: of the layer.
        scaling, softcap: as in `kvbudget.cache.attention`.
        padded: whether some tokens may be padding, which nothing attends to.
        received: whether to tell what tokens receive.

    Returns:
        The output, shaped like `query`; the logarithm of the sum of all exponentials of logits,
        `(batch, kv_heads, rows)` float32, by which it can be joined with attention to other tokens;
        and the attention that tokens receive, summed over rows, `(batch, slots)` float32, which
        means something in filled slots alone, or None. A head without tokens gives 0 and -inf.
    """

    def __call__(
        self,
        query: Tensor,
        slots: Slots,
        *,
        scaling: float,
        softcap: float | None,
        padded: bool,
        received: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]: ...


class Store(Protocol):
    """Packs one token of each KV head into the head's next free slot.

    Args:
        slots: packed ones.
        keys, values: turned, `(batch, kv_heads, 1, head_dim)`.
    """

    def __call__(self, slots: Slots, keys: Tensor, values: Tensor) -> None: ...


#: What compiles the kernel of a device.
PACKAGES = {"cpu": "numba", "cuda": "triton"}


def attend_for(slots: Slots) -> Attend | None:
    """The kernel that is faster than plain operations for these slots; None if there is none, as
    for numbers that are not packed on a CPU, where PyTorch's own kernels are as fast."""
    if slots.keys.device.type == "cpu" and slots.coding is None:
        return None
    kernels = _kernels(slots.keys.device)
    return kernels and kernels.attend


def store_for(slots: Slots) -> Store | None:
    """The kernel that packs tokens into slots; None if nothing is packed or there is none."""
    kernels = _kernels(slots.keys.device) if slots.coding else None
    return kernels and kernels.store


def package_for(device: torch.device) -> str | None:
    """The package that compiles kernels for a device, if it is installed."""
    package = PACKAGES.get(device.type)
    return package if package and importlib.util.find_spec(package) else None


@functools.cache
def _kernels(device: torch.device) -> ModuleType | None:
    if package_for(device) is None:
        return None
    try:
        module = importlib.import_module(f"{__name__}.{device.type}")
        module.check()
    except Exception as error:  # of a compiler, a linker, a driver, a folder for what is compiled
        warnings.warn(
            f"{package_for(device)} does not work here ({error}), so decode steps take plain "
            "operations, which are slower; Triton needs a C compiler and the headers of Python",
            stacklevel=2,
        )
        return None
    return module
