"""Peak memory of this process."""

import contextlib
import resource
import sys
from pathlib import Path

__all__ = ["peak_memory_bytes"]


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
