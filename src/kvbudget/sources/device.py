"""Where models run."""

import os

import torch

from kvbudget.errors import UserError

CHOICES = ("auto", "cuda", "cpu")


def device() -> str:
    """The device that `KVBUDGET_DEVICE` (from `device:` in the config) asks for.

    Raises:
        UserError: it is none of `CHOICES`, or CUDA where there is none.
    """
    wanted = os.environ.get("KVBUDGET_DEVICE", "auto")
    if wanted not in CHOICES:
        raise UserError(f"KVBUDGET_DEVICE is {wanted!r}; use one of {', '.join(CHOICES)}")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise no_cuda(torch.version.cuda)
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def no_cuda(built_with: str | None) -> UserError:
    """What to say where CUDA is asked for and there is none. `built_with` is torch's version."""
    why = "torch sees none" if built_with else "this torch is built without it"
    return UserError(
        f"device: cuda is asked for, and there is no CUDA device ({why}); run it on a machine"
        " with a GPU, or set device: auto"
    )
