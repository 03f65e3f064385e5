"""Memory: the peak of this process, and what there is for it."""

import contextlib
import os
import resource
import sys
from pathlib import Path

from deploykit.cgroup import memory_limit

__all__ = ["available_memory_bytes", "machine_memory_bytes", "peak_memory_bytes"]


def peak_memory_bytes() -> int:
    """The most resident memory this process has had, in bytes.

    On Linux from ``/proc``: there ``ru_maxrss`` of a fresh process starts at what its parent had.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine_memory_bytes() -> int | None:
    """All memory of this machine, in bytes; None where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def available_memory_bytes() -> int | None:
    """Memory that this process and its like may use, in bytes: the machine's, or less in a container with a limit."""
    return min((size for size in (machine_memory_bytes(), memory_limit()) if size is not None), default=None)
