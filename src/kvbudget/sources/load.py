"""Read a model from disk for inference."""

import os
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kvbudget.errors import UserError
from kvbudget.sources.device import device as default_device

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load(
    directory: str | Path, dtype: str, device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (evaluation mode, no gradients) and tokenizer from a directory of safetensors.

    Args:
        directory: as `kvbudget.sources.download` leaves it; nothing is fetched.
        dtype: `bfloat16`, `float16` or `float32`.
        device: a torch device; by default what the config asks for (`kvbudget.sources.device`).

    Raises:
        UserError: the dtype is unknown, there is no such device, or the directory holds no model.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    device = device or default_device()
    for needed in ("config.json", "*.safetensors"):
        if not any(file.is_file() for file in Path(directory).glob(needed)):
            raise UserError(
                f"{directory} holds no model ({needed} is missing); remove the directory and get it"
                f" with: snakemake --cores 1 {directory}/source.json"
            )
    torch.set_num_threads(threads())
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=DTYPES[dtype], use_safetensors=True, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return model.eval().requires_grad_(False).to(device), tokenizer


def threads() -> int:
    """`KVBUDGET_THREADS`, or the CPUs this process may use (a container may hide some)."""
    given = os.environ.get("KVBUDGET_THREADS")
    if given is None:
        return len(os.sched_getaffinity(0))
    if not given.isdigit() or int(given) < 1:
        raise UserError(f"KVBUDGET_THREADS is {given!r}; give a number of threads, at least 1")
    return int(given)
