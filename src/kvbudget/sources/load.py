"""Read a model from disk for inference."""

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
from kvbudget.sources.formats import check_no_foreign_code
from kvbudget.sources.threads import threads

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load(
    directory: str | Path, dtype: str, device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (evaluation mode, no gradients) and tokenizer from a directory of safetensors.

    Args:
        directory: as `kvbudget.sources.download` leaves it; nothing is fetched, and no code that
            comes with it is run.
        dtype: `bfloat16`, `float16` or `float32`.
        device: a torch device; by default what the config asks for (`kvbudget.sources.device`).

    Raises:
        UserError: the dtype is unknown, there is no such device, or the directory holds no model,
            or one that needs code of its own.
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
    check_no_foreign_code(Path(directory).name, Path(directory))
    torch.set_num_threads(threads())
    here = {"local_files_only": True, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=DTYPES[dtype], use_safetensors=True, **here
    )
    tokenizer = AutoTokenizer.from_pretrained(directory, **here)
    return model.eval().requires_grad_(False).to(device), tokenizer
