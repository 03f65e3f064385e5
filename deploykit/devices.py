"""Devices as users write them: ``cpu``, ``cpu:4``, ``cuda``, ``cuda:0,2`` and ``auto``.

Nothing here loads a runtime: how many CUDA devices there are is asked of the runtime that will use them.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from deploykit.cgroup import cpu_quota
from deploykit.counts import require_whole
from deploykit.errors import DeviceError, UsageError
from deploykit.wording import counted

__all__ = ["MOST_RANKS", "Device", "available_cores", "check_ranks", "check_threads", "parse_devices"]

MOST_RANKS = 65_536
"""No job has more; so that a slip of the hand does not make as many files or processes."""

_THREADS_PER_CORE, _RANKS_PER_CORE = 4, 16

_FORMS = "cpu, cpu:4 (four CPU ranks), cuda (every CUDA device), cuda:0,2 (these CUDA devices) or auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One place where a rank runs. The ``index`` of a CPU is only the number of its rank."""

    kind: Literal["cpu", "cuda"] = "cpu"
    index: int = 0

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"


def available_cores() -> int:
    """How many CPU cores this process may use, at least one.

    Fewer than the machine has where the process is pinned (``taskset``, Slurm), in a container with a quota of CPU time
    (a part of a core counts as one), and where Python 3.13 or later is told so (``PYTHON_CPU_COUNT``).
    """
    quota = cpu_quota()
    return _cores() if quota is None else max(1, min(_cores(), math.ceil(quota)))


def _cores() -> int:
    told: Callable[[], int | None] | None = getattr(os, "process_cpu_count", None)
    if told is None and hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return (told or os.cpu_count)() or 1


def _cores_here() -> str:
    cores, machine = available_cores(), os.cpu_count() or 1
    if cores == machine:
        return f"this machine has {counted(cores, 'core')}"
    return f"this process may use {cores} of {machine} cores"


def check_threads(threads: int, *, here: bool = True) -> None:
    """Refuse a number of CPU threads of a rank that cannot be meant; ``here`` if the rank is on this machine.

    Raises:
        UsageError: none, or many more than there are cores: thousands exhaust the memory.
    """
    require_whole("threads", threads)
    if threads < 1:
        raise UsageError(f"threads {threads}: at least one thread is needed")
    most = available_cores() * _THREADS_PER_CORE
    if here and threads > most:
        raise UsageError(
            f"threads {threads}: {_cores_here()}; at most {most} threads of a rank are allowed here, and more than "
            "cores are slower: name fewer, or leave it out for a fair share"
        )


def check_ranks(devices: Sequence[Device]) -> None:
    """Refuse more CPU ranks than can be held here: each is a process.

    Raises:
        UsageError: many more than there are cores.
    """
    most = available_cores() * _RANKS_PER_CORE
    if devices[0].kind == "cpu" and len(devices) > most:
        raise UsageError(
            f"devices 'cpu:{len(devices)}': {_cores_here()}; at most {most} ranks are allowed here, "
            "and more than cores are slower: name fewer"
        )


def parse_devices(
    text: str, cuda_count: Callable[[], int], *, runtime: Callable[[], str] = lambda: "the runtime"
) -> tuple[Device, ...]:
    """The devices that ``text`` names, one rank each.

    Args:
        text: one of the forms above.
        cuda_count: asks the runtime how many CUDA devices it can use; called only where the answer matters.
        runtime: gives the name of that runtime, for messages.

    Raises:
        UsageError: another form, no rank at all, or one CUDA device twice.
        DeviceError: a device that is not there; the message lists what is there.

    >>> [str(device) for device in parse_devices("cuda:2,0", lambda: 4)]
    ['cuda:2', 'cuda:0']
    """
    if not isinstance(text, str):
        raise UsageError(f"devices {text!r}: of type {type(text).__name__}, expected one text, such as 'cpu:2'")
    kind, colon, rest = text.strip().partition(":")
    if kind == "auto" and not colon:
        return _cuda(range(cuda_count())) or (Device(),)
    if kind == "cpu":
        return _cpu(text, rest if colon else "1")
    if kind == "cuda":
        there = cuda_count()
        wanted = _indices(text, rest) if colon else list(range(max(there, 1)))
        if any(index >= there for index in wanted):
            raise DeviceError(_not_there(text, wanted, there, runtime()))
        return _cuda(wanted)
    raise UsageError(f"devices {text!r}: expected {_FORMS}")


def _cuda(indices: "range | list[int]") -> tuple[Device, ...]:
    return tuple(Device(kind="cuda", index=index) for index in indices)


def _cpu(text: str, count: str) -> tuple[Device, ...]:
    is_number = count.isascii() and count.isdigit() and len(count) <= len(str(MOST_RANKS))
    if not is_number or not 1 <= int(count) <= MOST_RANKS:
        raise UsageError(
            f"devices {text[:40]!r}: {count[:40]!r} is not a number of CPU ranks; at least 1 and at most {MOST_RANKS}, "
            "for example cpu:4"
        )
    return tuple(Device(kind="cpu", index=index) for index in range(int(count)))


def _indices(text: str, rest: str) -> list[int]:
    parts = [part.strip() for part in rest.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"devices {text!r}: {rest!r} is not a list of device numbers; expected {_FORMS}")
    indices = [int(part) for part in parts]
    if len(set(indices)) < len(indices):
        raise UsageError(f"devices {text!r}: a device is named twice; one rank runs on each, name it once")
    return indices


def _not_there(text: str, wanted: list[int], there: int, runtime: str) -> str:
    names = ", ".join(f"cuda:{index}" for index in range(there))
    cpu = f"cpu ({counted(available_cores(), 'core')})"
    if not there:
        return f"devices {text!r}: {runtime} sees no CUDA device here, only {cpu}{_hidden()}; use --devices cpu"
    missing = ", ".join(f"cuda:{index}" for index in wanted if index >= there)
    return f"devices {text!r}: {missing} is not there; {runtime} sees {names} and {cpu}{_hidden()}; choose among these"


def _hidden() -> str:
    """What may hide devices, which then have other numbers."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if shown is None else f" (CUDA_VISIBLE_DEVICES is {shown!r}; numbers count what that shows)"
