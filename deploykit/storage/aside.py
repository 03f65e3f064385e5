"""A file that takes long to write, in a locked folder beside its place: what a killed process left is told from what
another one still writes.
"""

import contextlib
import fcntl
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from deploykit.storage.files import TEMPORARY_PREFIX, discard, sync_directory, temporary_name

__all__ = ["written_aside"]


@contextlib.contextmanager
def written_aside(path: Path, *, taken: Exception | None = None) -> Iterator[Path]:
    """Give a temporary path on the disk of ``path``; on success flush it and rename it into place.

    On any error, Ctrl-C included, nothing is left, and ``path`` is as it was. What killed processes left of the same
    ``path`` is removed first. A file that has come to ``path`` meanwhile is not replaced where there is a ``taken``,
    which is raised.
    """
    for left in path.parent.glob(f"{TEMPORARY_PREFIX}*-{glob.escape(path.name)}"):
        if left.is_dir():
            _discard_unheld(left)
    folder, lock = _locked_folder(path)
    try:
        made = folder / path.name
        yield made
        with made.open("rb") as file:
            os.fsync(file.fileno())
        if taken is None:
            os.replace(made, path)
        else:
            _place(made, path, taken)
    finally:
        try:
            discard(folder)
        finally:
            os.close(lock)
    sync_directory(path.parent)


def _place(made: Path, path: Path, taken: Exception) -> None:
    """Rename a file, unless another one has the name."""
    try:
        os.link(made, path)
    except FileExistsError:
        raise taken from None
    except OSError:  # A file system without second names; between these two lines another process may take it.
        if path.exists():
            raise taken from None
        os.replace(made, path)


def _locked_folder(path: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock, which the kernel takes back whatever ends the process."""
    while True:  # Another process may take it for one that was left, before the lock is there.
        folder = path.with_name(temporary_name(path.name))
        folder.mkdir()
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):  # Without locks, as on NFS, nobody else gets one and removes it, either.
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)


def _discard_unheld(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        discard(folder)
    except OSError:
        return  # Somebody writes in it, or has removed it.
    finally:
        os.close(lock)
