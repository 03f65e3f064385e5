"""A temporary directory that is the process's own: none that was forked off takes it away at its end."""

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from types import TracebackType

__all__ = ["TemporaryDirectory"]


class TemporaryDirectory:
    """As that of ``tempfile``, which a fork removes when it ends or closes what it holds, though its parent reads it.

    It is removed at the end of the ``with`` block, with the last reference to it, or at the end of the process.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="deploykit-"))
        self._remove = weakref.finalize(self, _remove, self.path, os.getpid())

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)
