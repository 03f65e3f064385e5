"""Where an artifact is made: a directory beside the destination that becomes it, or vanishes."""

import contextlib
import glob
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from deploykit.errors import ExportError
from deploykit.storage.files import sync_directory

__all__ = ["Workshop", "put_back"]


class Workshop:
    """Make files in ``path``, then ``publish``; where that does not happen, nothing is left, and what was there stays.

    Where the destination is a link, what it points to is replaced and the link stays.

    Raises:
        ExportError: the files cannot be written, on entry or on the way out.
    """

    def __init__(self, destination: Path) -> None:
        self._named = destination
        self.destination = Path(os.path.realpath(destination))
        # Not the number of the process: in containers each has the same, and what a killed one left is in the way.
        self.path = self.destination.with_name(f".{self.destination.name}.{secrets.token_hex(4)}.tmp")
        self._old = self.path.with_suffix(".old")

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
            self.destination.rename(self._old)
        self.path.rename(self.destination)
        sync_directory(self.destination.parent)

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._old.exists() and not self.destination.exists():
            self._old.rename(self.destination)  # A signal came between the two, or nothing could take its place.
        for left in (self.path, self._old):
            shutil.rmtree(left, ignore_errors=True)
        if isinstance(error, OSError):
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> ExportError:
        return ExportError(
            f"{self._named}: writing in {self.path.parent} failed ({error.strerror or error}); nothing is left of it; "
            "make room or the folder writable, or choose another with -o"
        )


def put_back(destination: Path) -> None:
    """Give an artifact its place again that an export took away to replace it, and was killed before it did."""
    place = Path(os.path.realpath(destination))
    with contextlib.suppress(OSError):  # What cannot be moved is as it was.
        for old in place.parent.glob(f".{glob.escape(place.name)}.*.old"):
            made = old.with_suffix(".tmp")  # Where it is gone, it was published, and somebody has removed it since.
            if made.exists() and not place.exists():
                old.rename(place)
                shutil.rmtree(made, ignore_errors=True)
