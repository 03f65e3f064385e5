"""What the system does not give, or has taken away: errors that say so, in words that say what and what to do."""

import errno
import resource
from pathlib import Path

__all__ = ["limit_met"]

_MEMORY = "allow more (ulimit -v, the container's limit), or name a smaller --batch-size or fewer --devices"
_PROCESSES = (
    "the limit of processes and threads was met, or memory is short (ulimit -u, ulimit -v, the container's limits); "
    "allow more, or name fewer --devices or --threads"
)


def limit_met(error: BaseException) -> str | None:
    """The message for an error by which Python says that a limit was met or a place is gone; None for any other."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        said = f"out of memory ({error})" if str(error) else "out of memory"
        return f"{said}: {_MEMORY}"
    if isinstance(error, OSError):
        return _of_system(error)
    return f"{error}: {_PROCESSES}" if str(error) == "can't start new thread" else None


def _of_system(error: OSError) -> str | None:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"{error.strerror}: this process may have {files} (ulimit -n); allow more, or name fewer --devices"
    if error.errno == errno.EAGAIN:
        return f"{error.strerror}: {_PROCESSES}"
    if error.errno == errno.ENOENT and "No usable temporary directory" in str(error):
        return f"{error.strerror}; let TMPDIR name a directory that may be written"
    if error.errno == errno.ENOENT and error.filename is None and _is_homeless():
        return "the working directory was removed; change to one that is there and give the same command again"
    return None


def _is_homeless() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False
