"""What measures: the device, its processor and how much of it. Times of two are never mixed."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kvbudget.cache.kernels import package_for
from kvbudget.sources.threads import at_once


def machine(device: torch.device) -> dict[str, Any]:
    """What a time was taken on: a GPU's name or `cpu`, the CPU's name, threads to compute with,
    what compiled the kernels, and how many measurements shared it."""
    package = package_for(device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "kernels": f"{package} {version(package)}" if package else "none",
        "at_once": at_once(),
    }


def cpu_model() -> str:
    """Name of the processor."""
    return cpuinfo("model name", "Model") or platform.processor() or platform.machine()


def cpuinfo(*names: str) -> str:
    """The first processor's entry of one of these names in /proc/cpuinfo, or ''."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else []:
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""
