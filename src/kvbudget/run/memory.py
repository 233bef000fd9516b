"""Peak memory of this process and of its CUDA device, from a mark on."""

import contextlib
import sys
from pathlib import Path

import psutil
import torch

_PROC = Path("/proc/self")


def mark_peak() -> None:
    """Forget the peaks so far. Where the kernel cannot (not Linux), RSS peaks go on from before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        (_PROC / "clear_refs").write_text("5")  # resets the high-water mark, see proc(5)


def peak_rss_bytes() -> int:
    """Highest resident set size since `mark_peak`, in bytes."""
    try:
        lines = (_PROC / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        if sys.platform == "win32":
            return psutil.Process().memory_info().peak_wset
        import resource  # which Windows lacks

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_cuda_bytes() -> int | None:
    """Highest memory that torch allocated on CUDA since `mark_peak`; None without a device."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
