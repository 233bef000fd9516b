"""What this machine is: written before anything runs, printed in the paper, and warned about where
it will not do."""

import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from kvbudget.errors import UserError
from kvbudget.run.machine import cpu_model, cpuinfo
from kvbudget.sources.device import no_cuda
from kvbudget.sources.threads import usable

#: Packages whose versions can change a number.
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "numpy", "scipy")
#: Programs that turn the sources of the paper into a PDF.
TEX = ("latexmk", "pdflatex", "bibtex")
#: Debian packages that bring them.
TEX_PACKAGES = "latexmk texlive-latex-extra texlive-science texlive-fonts-recommended"
#: Below these a study of one small model does not get through (memory, disk: gibibytes).
LEAST_MEMORY, LEAST_DISK = 3.0, 3.0

_GIB = 2**30


def describe(directory: Path) -> dict[str, Any]:
    """Python, libraries, devices, memory and disk (bytes), TeX programs with their paths."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "cpu": _cpu(),
        "cuda": _cuda(),
        "memory_bytes": psutil.virtual_memory().total,
        "disk_free_bytes": shutil.disk_usage(directory).free,
        "tex": {program: shutil.which(program) for program in TEX},
    }


def warnings(found: dict[str, Any]) -> list[str]:
    """What will be slow, or will fail later on, and what to do about it."""
    said = []
    memory, disk = found["memory_bytes"] / _GIB, found["disk_free_bytes"] / _GIB
    if memory < LEAST_MEMORY:
        said.append(f"{memory:.1f} GiB of memory; a small model needs {LEAST_MEMORY:.0f}")
    if disk < LEAST_DISK:
        said.append(f"{disk:.1f} GiB of disk are free; downloads need {LEAST_DISK:.0f}")
    if missing := [program for program, path in found["tex"].items() if path is None]:
        said.append(
            f"no {', '.join(missing)}: results will be computed, but no PDF;"
            f" on Debian: apt-get install --no-install-recommends {TEX_PACKAGES}"
        )
    if not found["cuda"]["devices"]:
        said.append("no CUDA device: models run on the CPU, only small ones in bearable time")
        if not found["cpu"]["fast_bfloat16"]:
            said.append(
                "this CPU has no bfloat16 arithmetic: `dtype: float32` is several times faster"
            )
    return said


def requirements(found: dict[str, Any], *, cuda: bool, tex: bool, disk: float) -> None:
    """Raise UserError for the first thing that is required and not there."""
    if cuda and not found["cuda"]["devices"]:
        raise no_cuda(found["cuda"]["version"])
    if tex and (missing := [program for program, path in found["tex"].items() if path is None]):
        raise UserError(f"{missing[0]} is missing; on Debian: apt-get install {TEX_PACKAGES}")
    free = found["disk_free_bytes"] / _GIB
    if free < disk:
        raise UserError(f"{free:.1f} GiB of disk are free, {disk:g} are required; make room")


def _cpu() -> dict[str, Any]:
    return {
        "model": cpu_model(),
        "usable": usable(),
        "physical": psutil.cpu_count(logical=False),
        # Without these instructions bfloat16 products are emulated, several times slower than
        # float32.
        "fast_bfloat16": bool(
            {"avx512_bf16", "amx_bf16", "bf16"} & set(cpuinfo("flags", "Features").split())
        ),
    }


def _cuda() -> dict[str, Any]:
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append({"name": properties.name, "memory_bytes": properties.total_memory})
    return {"version": torch.version.cuda, "devices": devices}
