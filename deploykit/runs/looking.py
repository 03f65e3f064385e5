"""A run directory that cannot be looked at, as one message."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from deploykit.errors import RunError

__all__ = ["looking"]

_OF_A_DISK = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
"""What reading a file that is open may meet; such an error has no name of a file."""


@contextlib.contextmanager
def looking(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` at the run directory ``path``, or at a file in it, into a ``RunError``; others pass.

    Raises:
        RunError: its disk fails, its server does not answer, or something in it may not be read.
    """
    try:
        yield
    except OSError as error:
        name = error.filename
        is_ours = error.errno in _OF_A_DISK if name is None else Path(os.fsdecode(name)).is_relative_to(path)
        if not is_ours:
            raise
        where = "" if name is None else f"{os.fsdecode(name)}: "
        raise RunError(
            f"run directory {path}: cannot be looked at ({where}{error.strerror or error}); check its disk and who may "
            "read it, and give the same command again"
        ) from error
