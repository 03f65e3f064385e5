"""Rows that would come twice: files of a table whose log says that others replace them, and one file of two names."""

import glob
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploykit.errors import DataError
from deploykit.storage.locations import DataFile, Found
from deploykit.storage.stores import asking

__all__ = ["refuse_logged", "same_files"]

_LOGS = {
    "_delta_log/*": "Delta Lake",
    ".hoodie/*": "Hudi",
    "metadata/[v0-9]*.metadata.json": "Iceberg",
    "_spark_metadata/*": "a Spark stream",
}
"""What lies in the directory of a table beside its files or the folders of them, and whose table it is."""


def refuse_logged(found: Found) -> None:
    """Refuse a directory or pattern whose files are those of a table with a log: rows that were deleted are there too.

    Raises:
        DataError: names the table, and says what to do.
    """
    if [file.name for file in found.files] == [found.text]:
        return  # Whoever names one file means that.
    filesystem = found.files[0].filesystem if found.files else None
    for folder in _folders(found):
        for log, whose in _LOGS.items():
            if _is_there(found.text, posixpath.join(glob.escape(folder), log), filesystem):
                raise DataError(
                    f"data {found.text}: {folder} is a table of {whose}: rows that were deleted, replaced or written "
                    f"twice stay in its files, and {posixpath.dirname(log)} says what counts; write the rows that "
                    "count as Parquet with what reads such tables, and give that"
                )


def same_files(found: Found) -> str | None:
    """Which two of the files on this machine are one, through links of any kind; None where each is there once."""
    seen: dict[tuple[int, ...], DataFile] = {}
    for file in found.files:
        if not file.is_local or len(found.files) == 1:
            return None
        status = os.stat(file.path)  # noqa: PTH116 (a folder may have a million files)
        # Some file systems of networks give one number to several files.
        one = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        # Files without a byte hold no row that could come twice, and a store may well keep them as one.
        first = seen.setdefault(one, file) if status.st_size else file
        if first is not file:
            return f"{first.name} and {file.name} are the same file"
    return None


def _is_there(text: str, pattern: str, filesystem: Any) -> bool:
    if filesystem is None:
        return next(glob.iglob(pattern), None) is not None  # noqa: PTH207 (a log may be long)
    with asking(f"data {text}", "looked at", DataError):
        try:
            return bool(filesystem.glob(pattern))
        # Stores raise types of their own; what does not say no goes on.
        except Exception as error:
            if not _says_no(error):
                raise
            return False


def _says_no(error: Exception) -> bool:
    """Whether a store answered that there is no such folder, or none to be seen, as a web server does with a 4xx."""
    return isinstance(error, FileNotFoundError | PermissionError) or 400 <= getattr(error, "status", 0) < 500


def _folders(found: Found) -> Iterator[str]:
    """The folders in which a log would be: of files here all that they lie in; those of a store cost a question each,
    so there, from what the user named on, those of the first file.
    """
    folders = sorted({posixpath.dirname(file.path) for file in found.files})
    if not folders:
        return
    if found.files[0].is_local:
        real = {Path(folder).resolve() for folder in folders}
        yield from sorted({str(above) for folder in real for above in (folder, *folder.parents)})
        return
    # Not commonpath and dirname: an empty part, as after "http:" or in a key with "//", counts.
    shared = len(os.path.commonprefix([folder.split("/") for folder in folders]))  # noqa: RUF071 (of lists, the parts)
    parts = posixpath.dirname(found.files[0].path).split("/")
    yield from ("/".join(parts[:count]) or "/" for count in range(len(parts), max(shared, 1) - 1, -1))
