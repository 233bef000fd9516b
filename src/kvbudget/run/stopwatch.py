"""Wall time of work that may run asynchronously on a device."""

import time

import torch


class Stopwatch:
    """Seconds between starting and reading, with the device's queue drained at both ends."""

    def __init__(self) -> None:
        _drain()
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Seconds since the start."""
        _drain()
        return time.perf_counter() - self._start


def _drain() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
