"""What a job asks of a machine. Imports no torch: it is known before anything runs."""

import json
from pathlib import Path

_ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}
_LIBRARIES_MB = 3000  # torch and transformers in memory, with the libraries of CUDA


def memory_mb(verified: Path, dtype: str, length: int) -> int:
    """Main memory, in MB, to load a model and read a prompt of `length` tokens with a full cache.

    Generous on purpose, as what does not fit is killed: 1.25 times the weights, as tensors are
    converted while they are loaded, and four times the full cache, for snapshots and activations
    (3.6 times it was measured on SmolLM2-135M without a GPU).

    Raises:
        FileNotFoundError: the model, which `verified` describes, is not here yet.
    """
    model = json.loads(verified.read_text())
    itemsize = _ITEMSIZE[dtype]
    weights = model["checks"]["parameters"] * itemsize
    token = 2 * model["layers"] * model["kv_heads"] * model["head_dim"] * itemsize
    return _LIBRARIES_MB + round((1.25 * weights + 4 * token * length) / 1e6)
