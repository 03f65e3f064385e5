"""Where an artifact is made: a directory beside the destination that becomes it, or vanishes."""

import contextlib
import glob
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from deploykit.artifact import MANIFEST_NAME
from deploykit.errors import ExportError, UsageError
from deploykit.storage.files import sync_directory

__all__ = ["Workshop", "put_back", "refuse_taken"]


class Workshop:
    """Make files in ``path``, then ``publish``; where that does not happen, nothing is left, and what was there stays.

    Where the destination is a link that leads nowhere yet, what it points to is made.

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

    def publish(self, *, overwrite: bool) -> None:
        """Let the destination be what was made.

        Raises:
            UsageError: something is there that may not be replaced.
        """
        refuse_taken(self._named, overwrite=overwrite)  # Once more: an export takes long.
        for file in self.path.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if overwrite and self.destination.exists():
            self.destination.rename(self._old)
        try:
            self.path.rename(self.destination)  # A directory takes the place of none but an empty one.
        except OSError:
            refuse_taken(self._named, overwrite=overwrite)
            raise
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


def refuse_taken(path: Path, *, overwrite: bool) -> None:
    """Refuse a destination at which something is, unless that is an artifact which may be replaced.

    Raises:
        UsageError: something else is there, or a link, whose users would get another artifact without a word.
    """
    if not path.exists():
        return
    if path.is_symlink():
        target = path.resolve()
        raise UsageError(
            f"{path} is a link to {target}, which others may use under that name, so neither is replaced; export to a "
            f"new name and let the link lead there, or replace what it leads to with -o {target} --overwrite"
        )
    if not overwrite:
        raise UsageError(f"{path} exists; choose another name, or replace it with --overwrite (overwrite=True)")
    if not (path / MANIFEST_NAME).is_file():
        raise UsageError(f"{path} exists and is no artifact, so it is not replaced; choose another name")


def put_back(destination: Path) -> None:
    """Give an artifact its place again that an export took away to replace it, and was killed before it did."""
    place = Path(os.path.realpath(destination))
    with contextlib.suppress(OSError):  # What cannot be moved is as it was.
        for old in place.parent.glob(f".{glob.escape(place.name)}.*.old"):
            made = old.with_suffix(".tmp")  # Where it is gone, it was published, and somebody has removed it since.
            if made.exists() and not place.exists():
                old.rename(place)
                shutil.rmtree(made, ignore_errors=True)
