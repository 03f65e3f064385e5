"""Where a run was made: machine, versions, command. Goes into every report."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.devices import available_cores
from deploykit.driver import device_names
from deploykit.version import __version__
from runners.system.memory import available_memory_bytes, machine_memory_bytes

__all__ = ["environment"]

CPUINFO = Path("/proc/cpuinfo")


def environment(runtime: str, runtime_version: str, *, on_gpu: bool = False) -> dict[str, Any]:
    """CPU, cores, memory, platform, and the versions of everything that took part; all GPUs here where some did."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_available": available_cores(),
        "memory_bytes": machine_memory_bytes(),
        "memory_available_bytes": available_memory_bytes(),
        "gpus": device_names() if on_gpu else [],
        "platform": platform.platform(),
        "versions": {
            "deploykit": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            runtime: runtime_version,
        },
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _cpu_model() -> str:
    """Its name, with its family and model where Linux tells them: a cloud calls generations that differ alike."""
    try:
        first = CPUINFO.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first)}
    generation = [f"{word} {said[key]}" for word, key in (("family", "cpu family"), ("model", "model")) if key in said]
    name = said.get("model name", platform.machine())
    return f"{name} ({', '.join(generation)})" if generation else name
