"""What a job asks of a machine. Imports no torch: it is known before anything runs."""

import json
from pathlib import Path

_ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}
_LIBRARIES_MB = 3000  # torch and transformers in memory, with the libraries of CUDA


def memory_mb(verified: Path, dtype: str, length: int) -> int:
    """Main memory, in MB, to load a model and read a prompt of `length` tokens with a full cache.

    Generous on purpose, as what does not fit is killed: 1.25 times the weights, as tensors are
    converted while they are loaded, and four times the full cache, for snapshots and activations
    (3.6 times it was measured on SmolLM2-135M without a GPU). What contexts that are asked together
    hold beside each other (`kvbudget.run.grouping`) fits into the libraries' share.

    Raises:
        FileNotFoundError: the model, which `verified` describes, is not here yet.
    """
    model = json.loads(verified.read_text())
    itemsize = _ITEMSIZE[dtype]
    weights = model["checks"]["parameters"] * itemsize
    token = _token_bytes(model, itemsize)
    return _LIBRARIES_MB + round((1.25 * weights + 4 * token * length) / 1e6)


def prefills_mb(verified: Path, dtype: str, length: int, contexts: int) -> int:
    """Disk, in MB, for recorded contexts of `length` tokens: their keys and values, and some more
    for signals. Sliding windows hold less.

    Raises:
        FileNotFoundError: as `memory_mb`.
    """
    token = _token_bytes(json.loads(verified.read_text()), _ITEMSIZE[dtype])
    return 1 + round(1.1 * token * length * contexts / 1e6)


def _token_bytes(model: dict, itemsize: int) -> int:
    return 2 * model["layers"] * model["kv_heads"] * model["head_dim"] * itemsize
