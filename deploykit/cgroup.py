"""What Linux lets the control groups use that this process is in: a container's share of CPU time and memory.

``docker --cpus 2`` and the limits of a Kubernetes pod set a quota of CPU time; the process still sees, and may run on,
every core of the machine. Both versions of control groups are read, from the process's own group up to the topmost one
that is mounted here; the tightest limit counts.
https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/scheduler/sched-bwc.html
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

__all__ = ["cpu_quota", "memory_limit"]

_ESCAPED = re.compile(r"\\([0-7]{3})")


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores whose whole time the process may use, such as 2.0 or 0.5; None without a limit.

    ``root`` is where ``/proc`` and ``/sys`` are.
    """
    found = [_ratio(group) for group in _groups(root, "cpu")]
    return min((ratio for ratio in found if ratio is not None), default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes of memory beyond which the kernel kills; None without a limit. ``root`` as for ``cpu_quota``."""
    files = ("memory.max", "memory.limit_in_bytes")
    texts = [_text(*(group / file for file in files)).strip() for group in _groups(root, "memory")]
    return min((int(text) for text in texts if text.isdecimal() and int(text)), default=None)


def _ratio(group: Path) -> float | None:
    """``200000 100000`` are two cores; ``max 100000`` and ``-1 100000`` are no limit."""
    parts = (_text(group / "cpu.max", group / "cpu.cfs_quota_us") + " " + _text(group / "cpu.cfs_period_us")).split()
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        return None
    return int(parts[0]) / int(parts[1])


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Where the process's group of a controller is, and all groups around it, as far as they are mounted."""
    lines = _text(root / "proc/self/cgroup").split("\n")
    mounts = list(_mounts(_text(root / "proc/self/mountinfo").split("\n"), controller))
    for names in sorted({each for each, _, _ in mounts}):
        own = _own_group(lines, names)
        if own is not None:
            for place, inner in _places(own, [(top, place) for each, top, place in mounts if each == names]):
                group = root / place.relative_to("/") / inner
                for _ in range(len(inner.parts) + 1):
                    yield group
                    group = group.parent


def _places(
    own: PurePosixPath, mounts: Sequence[tuple[PurePosixPath, PurePosixPath]]
) -> list[tuple[PurePosixPath, PurePosixPath]]:
    """Where the own group is mounted: the place, and the path from there.

    Mounts of other groups count for nothing. Only where no mount has the own group, as in a container where a part of
    the tree is mounted and the process's path speaks of another part, that part is its own.
    """
    inside = [(top, place) for top, place in mounts if own.is_relative_to(top) and ".." not in own.parts]
    return [(place, own.relative_to(top)) for top, place in inside] or [(place, PurePosixPath()) for _, place in mounts]


def _own_group(lines: Sequence[str], controller: str) -> PurePosixPath | None:
    """The process's group by ``/proc/self/cgroup``; that of version 2 is of no controller by name."""
    for line in filter(None, lines):
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return PurePosixPath(path)
    return None


def _mounts(lines: Iterable[str], controller: str) -> Iterator[tuple[str, PurePosixPath, PurePosixPath]]:
    """Mounts of version 2, or of the controller in version 1: its name there, the topmost group, and the place."""
    for line in filter(None, lines):
        before, _, after = line.partition(" - ")
        kind, *_, options = after.split(" ")
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            top, place = before.split(" ")[3:5]
            yield "" if kind == "cgroup2" else controller, PurePosixPath(_plain(top)), PurePosixPath(_plain(place))


def _plain(text: str) -> str:
    r"""The kernel writes spaces, tabs, line ends and backslashes of a path as ``\040`` and so on."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)


def _text(*files: Path) -> str:
    """What the first of the files holds that is there and ours to read."""
    for file in files:
        with contextlib.suppress(OSError):
            return file.read_text(encoding="utf-8", errors="surrogateescape")
    return ""
