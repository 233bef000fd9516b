"""Tensors in files of safetensors: written in one step, and opened with errors in words."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvbudget.errors import UserError


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file that is whole or not there, whatever happens on the way."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    plain = {name: own.detach().contiguous() for name, own in tensors.items()}
    try:
        save_file(plain, part, dict(metadata))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def opened(path: Path, named: str, remedy: str) -> Iterator[safe_open]:
    """A file of tensors. Raises `UserError` if it is none, which says so of `named`."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{named} is not there; {remedy}") from None
    except OSError as error:
        raise UserError(f"{named} cannot be read ({error}); {remedy}") from None
    except SafetensorError as error:
        raise UserError(f"{named} is cut short or damaged ({error}); {remedy}") from None


def read(file: safe_open, name: str, device: torch.device) -> Tensor:
    """A tensor of a file. Not as it is mapped: that cannot be written to, and lies where the file
    has it, while sums may depend on how memory is aligned."""
    return file.get_tensor(name).to(device, copy=True)
