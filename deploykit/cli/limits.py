"""Limits of the system: errors that say one was met, in words that say which and what to do."""

import errno
import resource

__all__ = ["limit_met"]


def limit_met(error: BaseException) -> str | None:
    """The message for an error by which Python says that a limit was met; None for any other error."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{error.strerror}: this process may have {files} (ulimit -n); allow more, or name fewer --devices"
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return f"{error.strerror}; let TMPDIR name a directory that may be written"
    if isinstance(error, OSError) and error.errno == errno.EAGAIN:
        return f"{error.strerror}: {_PROCESSES}"
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return f"{error}: {_PROCESSES}"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        said = f"out of memory ({error})" if str(error) else "out of memory"
        return (
            f"{said}: allow more (ulimit -v, the container's limit), or name a smaller --batch-size or fewer --devices"
        )
    return None


_MEMORY = "allow more (ulimit -v, the container's limit), or name a smaller --batch-size or fewer --devices"
_PROCESSES = (
    "the limit of processes and threads was met, or memory is short (ulimit -u, ulimit -v, the container's limits); "
    "allow more, or name fewer --devices or --threads"
)
