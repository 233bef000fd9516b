"""Contexts of a place that were read once, as a folder: who may take them, and when.

A cell reads its first contexts by itself. They alone give times and peaks, and what comes of them
must be what comes of the recorded ones, so each cell tests what it takes the others from.
"""

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from kvbudget.cache.prefill import Prefill
from kvbudget.errors import UserError

#: Written last: how many of the contexts are there.
MANIFEST = "prefills.json"


@dataclass(frozen=True)
class Shared:
    """A recorded context.

    Attributes:
        prefill: the context.
        own: whether it is read all the same, and compared.
    """

    prefill: Prefill
    own: bool


def facts(model: PreTrainedModel, model_sha256: str) -> dict[str, str]:
    """What decides the numbers that a model makes of a context, to the last bit."""
    device = model.device
    on_cpu = f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    return {
        "model": model_sha256,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else on_cpu,
        "threads": str(torch.get_num_threads()),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    }


def file_of(folder: Path, index: int) -> Path:
    """Where a context of a place is recorded."""
    return folder / f"{index}.safetensors"


class Store:
    """The recorded contexts of a place.

    Args:
        folder: as `kvbudget prefill` leaves it. Where that fails, the workflow puts one without
            contexts in its place.
        facts: what they must have been recorded with.
        own: contexts, of the first, that a cell reads all the same.

    Raises:
        UserError: there is no such folder, or recording was cut short.
    """

    def __init__(self, folder: Path, facts: dict[str, str], own: int) -> None:
        try:
            manifest = {"contexts": 0}
            if any(path.suffix == ".safetensors" for path in folder.iterdir()):
                manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            self.count = manifest["contexts"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder} holds no recorded contexts, or was cut short ({error!r}); delete it, "
                "and it is made again, or measure the cell without --prefills"
            ) from None
        self.folder, self.facts, self.own = folder, facts, own

    def context(self, index: int) -> Shared | None:
        """A context of the place; None if it could not be recorded."""
        if index >= self.count:
            return None
        return Shared(Prefill(file_of(self.folder, index), self.facts), own=index < self.own)
