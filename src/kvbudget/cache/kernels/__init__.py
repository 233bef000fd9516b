"""Kernels of a decode step: attention straight from the slots of a layer.

They compute what `kvbudget.cache.ragged` defines with PyTorch's own operations, which runs wherever
they cannot. Each is in a module of its own, by the package that compiles it, and loaded if that
package is installed: numba on a CPU, Triton on a GPU.
"""

import functools
import importlib
import importlib.util
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


#: What compiles the kernel of a device.
PACKAGES = {"cpu": "numba", "cuda": "triton"}
#: Rows from which plain products on a CPU, which unpack once for all of them, are faster.
MANY = 48


def kernel_for(slots: Slots, rows: int) -> Attend | None:
    """The kernel that is faster than plain operations for these slots and so many rows of a KV
    head; None if there is none."""
    if slots.keys.device.type == "cpu" and (slots.coding is None or rows > MANY):
        return None
    return _kernel(slots.keys.device)


@functools.cache
def _kernel(device: torch.device) -> Attend | None:
    package = PACKAGES.get(device.type)
    if package is None or importlib.util.find_spec(package) is None:
        return None
    return importlib.import_module(f"{__name__}.{device.type}").attend
