"""One run at a time in one directory."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from deploykit.errors import RunError
from deploykit.feed import writing
from deploykit.rundir import LOCK_NAME, RUN_NAME

__all__ = ["locked"]

PATIENCE_S = 1.0
"""The ranks of a run that was killed need a moment to notice; they hold the lock until they are gone."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the directory's lock, creating the directory; gives the lock's descriptor, which ranks inherit.

    The kernel releases the lock when the last process that holds the descriptor is gone, however it died.

    Raises:
        RunError: another run holds it, or the directory cannot be created.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"run directory {path}: is a file; name a new directory")
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _take(path, descriptor)
        try:
            yield descriptor
        finally:
            if not (path / RUN_NAME).exists():
                # The directory was refused because it is somebody else's: it keeps no file of ours.
                (path / LOCK_NAME).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _take(path: Path, descriptor: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RunError(
                    f"run directory {path}: another run is writing into it; wait until it ends, "
                    "or name another directory"
                ) from None
            time.sleep(0.05)
        else:
            return
