"""Where an artifact is made: a directory beside the destination that becomes it, or vanishes."""

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from deploykit.errors import ExportError
from deploykit.storage.files import sync_directory

__all__ = ["Workshop"]


class Workshop:
    """Make files in ``path``, then ``publish``; nothing is left where that does not happen.

    Where the destination is a link, what it points to is replaced and the link stays.

    Raises:
        ExportError: the files cannot be written, on entry or on the way out.
    """

    def __init__(self, destination: Path) -> None:
        self._named = destination
        self.destination = Path(os.path.realpath(destination))
        self.path = self.destination.with_name(f".{self.destination.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Self:
        try:
            self.path.mkdir()
        except OSError as error:
            raise self._failed(error) from error
        return self

    def publish(self) -> None:
        """Let the destination be what was made."""
        for file in self.path.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if self.destination.exists():
            old = self.path.with_suffix(".old")
            self.destination.rename(old)
            self.path.rename(self.destination)
            shutil.rmtree(old)
        else:
            self.path.rename(self.destination)
        sync_directory(self.destination.parent)

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if isinstance(error, OSError):
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> ExportError:
        return ExportError(
            f"{self._named}: writing in {self.path.parent} failed ({error.strerror or error}); nothing is left of it; "
            "make room or the folder writable, or choose another with -o"
        )
