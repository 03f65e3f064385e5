"""One run at a time in one directory, and in it who finishes the run and who needs the rows that were drawn."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from deploykit.errors import RunError
from deploykit.runs.early import FINISH_LOCK, LOCK_NAME, ROWS_LOCK
from deploykit.runs.feed import writing
from deploykit.runs.rundir import RUN_NAME
from runners.system.descriptors import forget, keep

__all__ = ["BusyError", "alone", "are_rows_held", "finishing", "holding_rows", "locked"]

PATIENCE_S = 1.0
"""The ranks of a run that was killed need a moment to notice; they hold the lock until they are gone."""

_WITHOUT = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems say that have no locks."""


class BusyError(RunError):
    """Another run holds the directory."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"run directory {path}: another run is writing into it; wait until it ends, or name another directory"
        )


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[int]:
    """Hold the directory's lock, creating the directory; gives the lock's descriptor, which ranks inherit.

    The kernel releases the lock when the last process that holds the descriptor is gone, however it died; what a
    user's code forks does not hold it. The ranks that a launcher starts hold it together, ``shared``; a run that places
    its ranks itself holds it alone.

    Raises:
        BusyError: another run holds it.
        RunError: the directory cannot be created, or its file system has no locks.
    """
    if path.exists() and not path.is_dir():
        raise RunError(f"run directory {path}: is a file; name a new directory")
    descriptor = _take(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    keep(descriptor)
    try:
        yield descriptor
    finally:
        # What went wrong before is what people have to know, and the lock is let go of whatever comes.
        with contextlib.suppress(OSError):
            if not (path / RUN_NAME).exists():
                # The directory was refused because it is somebody else's: it keeps no file of ours.
                (path / LOCK_NAME).unlink(missing_ok=True)
        forget(descriptor)
        os.close(descriptor)


@contextlib.contextmanager
def alone(lock: int) -> Iterator[bool]:
    """Let nobody else take a lock that is held ``shared``; whether nobody else has it, and then it stays so.

    ``lock`` is its descriptor.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_alone = True
    except OSError:
        is_alone = False  # Somebody else has it, or nobody can tell.
    try:
        yield is_alone
    finally:
        # Where it was not to be had, the shared one may be lost; a run that took it meanwhile is waited for.
        fcntl.flock(lock, fcntl.LOCK_SH)


@contextlib.contextmanager
def finishing(path: Path) -> Iterator[None]:
    """Hold the right to write the files of the whole job in a run directory; waits while another process has it."""
    with _opened(path / FINISH_LOCK) as file:
        _lock(path, file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def holding_rows(path: Path) -> Iterator[None]:
    """Say that this process needs the rows that were drawn into a run directory; any number of processes may."""
    with _opened(path / ROWS_LOCK) as file:
        _lock(path, file, fcntl.LOCK_SH)
        yield


def are_rows_held(path: Path) -> bool:
    """Whether a process needs the rows in a run directory; who asks has that locked, so that none comes meanwhile."""
    with _opened(path / ROWS_LOCK) as file:
        try:
            _lock(path, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of the file of a lock, which what a user's code forks does not have."""
    descriptor = _open(path)
    keep(descriptor)
    try:
        yield descriptor
    finally:
        forget(descriptor)
        os.close(descriptor)


def _open(path: Path) -> int:
    with writing(path):
        # As the umask says, like all other files: another of the group may take up the run.
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _take(path: Path, kind: int) -> int:
    """A descriptor of the lock's file, which has the lock."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        descriptor = _open(path / LOCK_NAME)
        try:
            if _has(path, descriptor, kind):
                return descriptor
        except BaseException:  # Closed and raised again, whatever it is.
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise BusyError(path)
        time.sleep(0.05)


def _has(path: Path, descriptor: int, kind: int) -> bool:
    """Try to lock the file; not one that who held it has removed since, because the next one would make another."""
    try:
        _lock(path, descriptor, kind | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), (path / LOCK_NAME).stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _lock(path: Path, descriptor: int, kind: int) -> None:
    """Lock a file of the run directory.

    Raises:
        BlockingIOError: another process has it, and ``kind`` says not to wait.
        RunError: it cannot be locked.
    """
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        raise
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno in _WITHOUT:
            raise RunError(
                f"run directory {path}: its file system has no locks ({why}), which keep two runs apart; name a "
                "directory on one that has them: NFS 4, or Lustre mounted with the option flock"
            ) from error
        raise RunError(
            f"run directory {path}: cannot be locked ({why}), which keeps two runs apart; try again, or name a "
            "directory on another file system"
        ) from error
