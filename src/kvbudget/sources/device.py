"""Where models run: `python -m kvbudget.sources.device` prints it, or says why it cannot be had."""

import os

import torch

from kvbudget.errors import UserError, run_cli

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
        why = "torch sees none" if torch.version.cuda else "this torch is built without it"
        raise UserError(
            f"device: cuda is asked for, and there is no CUDA device ({why}); run it on a machine"
            " with a GPU, or set device: auto"
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


if __name__ == "__main__":
    run_cli(lambda: print(device()))
