"""Where data is: local files, directories and globs, and whatever else fsspec opens by a URL.

A local path and a ``file://`` URL need no package; ``memory://``, ``s3://`` and all others go through fsspec.
"""

import glob
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import unquote

from deploykit.errors import DataError
from deploykit.storage.stores import LOCAL_URLS, asking, open_filesystem

__all__ = ["RUN_NAME", "DataFile", "Found", "PositionedFile", "find", "local_file"]

RUN_NAME = "run.json"
"""What a directory of predictions holds."""

_GLOB = frozenset("*?[")
_VERSIONS = (
    "ETag", "etag", "md5", "md5Hash", "checksum", "generation", "LastModified", "last_modified", "mtime",
)  # fmt: skip
"""What stores call what changes with the content, the surest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One file.

    Attributes:
        name: as the user gave it; of a file in a directory, its path in that directory.
        path: where it is in its filesystem.
        filesystem: an fsspec filesystem; None for this machine's.
    """

    name: str
    path: str
    filesystem: Any = None

    @property
    def extension(self) -> str:
        """In lower case, without the dot."""
        return os.path.splitext(self.path)[1].lower().removeprefix(".")  # noqa: PTH122 (a folder may have a million files)

    @property
    def place(self) -> str:
        """How messages name one of many files: with the directory in which the user will look for it."""
        return self.path if self.filesystem is None else str(self.filesystem.unstrip_protocol(self.path))

    @property
    def is_local(self) -> bool:
        return self.filesystem is None

    def open(self, *, buffered: bool = True) -> IO[bytes]:
        """A new, seekable reader of the file; a store always buffers.

        Raises:
            DataError: it cannot be opened.
        """
        try:
            if self.filesystem is None:
                return cast("IO[bytes]", Path(self.path).open("rb", buffering=-1 if buffered else 0))
        except OSError as error:
            raise DataError(
                f"data {self.place}: cannot be opened ({error}); check the path and its permissions"
            ) from error
        with asking(f"data {self.name}", "opened", DataError):
            return cast("IO[bytes]", self.filesystem.open(self.path, "rb"))

    def size_and_version(self) -> tuple[int, str | int]:
        """Bytes, and something that changes when the content does: the time of change, or what the store says of it."""
        if self.filesystem is None:
            status = os.stat(self.path)  # noqa: PTH116 (a folder may have a million files)
            return status.st_size, status.st_mtime_ns
        with asking(f"data {self.name}", "looked at", DataError):
            info = self.filesystem.info(self.path)
            known = next((str(info[name]) for name in _VERSIONS if info.get(name)), None)
            # By default a ukey is made of all that is known, with the time of the last access where that is.
            return int(info["size"]), known or str(self.filesystem.ukey(self.path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a text names: ``files`` in a fixed order. ``directory`` is set where it names one.

    ``runs`` are the run directories in it: what lies there are predictions, which would come back as data.
    """

    text: str
    files: tuple[DataFile, ...]
    directory: str | None = None
    runs: tuple[str, ...] = ()


class PositionedFile:
    """Reads at any position; any thread may call it. Local reads leave the GIL and move no shared position."""

    def __init__(self, file: DataFile) -> None:
        self._name, self._local = file.name, file.is_local
        self._lock = threading.Lock()
        self._file: Any = file.open(buffered=False)

    def read_into(self, room: memoryview, position: int) -> int:
        """Fill ``room`` as far as one read does; the number of bytes, 0 at the end.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            if self._local:
                return os.preadv(self._file.fileno(), [room], position)
        except OSError as error:
            raise DataError(
                f"data {self._name}: cannot be read at byte {position}: {error.strerror or error}"
            ) from error
        with self._lock, asking(f"data {self._name}", f"read at byte {position}", DataError):
            self._file.seek(position)
            return int(self._file.readinto(room))

    def close(self) -> None:
        self._file.close()


def local_file(path: Path) -> DataFile:
    """A file of this machine, by its path."""
    return DataFile(name=str(path), path=str(path))


def find(text: str) -> Found:
    """The files that a path, glob or URL names: one, all those below a directory, or all matches, sorted by name.

    Hidden files and folders, and those whose names begin with an underscore (``_SUCCESS``), do not count in
    directories, nor from the first wildcard of a glob on, unless it names them.

    Raises:
        DataError: nothing there, nothing in it, no match, no regular file, or no permission.
        MissingExtraError: a URL needs a package that is not installed.
    """
    prefix = next(filter(text.startswith, LOCAL_URLS), None)
    if prefix is None and "://" in text:
        return _find_remote(text)
    # Names are bytes, and %E9 is one of them.
    place = text if prefix is None else unquote(text.removeprefix(prefix), errors="surrogateescape")
    try:
        return _find_local(text, place)
    except OSError as error:
        raise DataError(
            f"data {text}: cannot be looked at ({error.strerror or error}); check the path and the permissions of its "
            "folders"
        ) from error


def _find_local(text: str, place: str) -> Found:
    if not place:
        raise DataError(f"data {text!r}: names nothing; name a file, a directory ('.' is the working one) or a pattern")
    path = Path(place)
    if path.is_dir():
        runs: list[str] = []
        files = _listed(_below(text, place, frozenset(), runs), place)
        return Found(text=text, files=files, directory=place, runs=tuple(sorted(runs)))
    if not path.exists() and _GLOB & set(place):
        return Found(text=text, files=_matches(text, _matching(text, place), None))
    _require_readable(text, path)
    return Found(text=text, files=(DataFile(name=text, path=place),))


def _below(text: str, folder: str, above: frozenset[tuple[int, int]], runs: list[str]) -> Iterator[str]:
    """The files of a folder and all below it, through links too: what cannot be looked at is never left out.

    Run directories below it go into ``runs`` and are not gone through.
    """
    _require_searchable(text, folder)
    status = Path(folder).stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise DataError(f"data {text}: {folder} is a link to a folder that it lies in; remove it, or use a pattern")
    # A file of that name alone may be anybody's.
    if above and Path(folder, RUN_NAME).is_file() and Path(folder, "commits").is_dir():
        runs.append(folder)
        return
    with os.scandir(folder) as entries:
        for entry in filter(lambda entry: _counts(entry.name), entries):
            if entry.is_dir():
                yield from _below(text, entry.path, above | {here}, runs)
            else:
                yield _regular(text, entry.path, is_file=entry.is_file())


def _matching(text: str, pattern: str) -> Iterator[str]:
    """The files that match, if every folder in which one could be can be looked at."""
    folder = str(Path(pattern).parent)
    while _GLOB & set(folder):
        for name in glob.glob(folder, recursive=True):  # noqa: PTH207
            _require_searchable(text, name)
        folder = str(Path(folder).parent)
    _require_searchable(text, folder)
    for name in glob.glob(pattern, recursive=True):  # noqa: PTH207
        if _is_meant(pattern, name) and not os.path.isdir(name):  # noqa: PTH112
            yield _regular(text, name, is_file=os.path.isfile(name))  # noqa: PTH113


def _require_searchable(text: str, folder: str) -> None:
    if Path(folder).is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"data {text}: the folder {folder} may not be read by this user; change its permissions")


def _regular(text: str, name: str, *, is_file: bool) -> str:
    if not is_file:
        what = "no regular file" if Path(name).exists() else "a link to nothing"
        raise DataError(f"data {text}: {name} is {what}; take it out of the data, or use a pattern without it")
    return name


def _require_readable(text: str, path: Path) -> None:
    if not path.exists():
        raise DataError(f"data {text}: no such file; check the path (the working directory is {Path.cwd()})")
    if not path.is_file():
        raise DataError(f"data {text}: not a regular file; rows are read by position, so copy it to a file first")
    if not os.access(path, os.R_OK):
        raise DataError(f"data {text}: may not be read by this user; change its permissions")


def _find_remote(text: str) -> Found:
    filesystem, place = open_filesystem(text, "data", DataError)
    with asking(f"data {text}", "looked at", DataError):
        if _GLOB & set(place):
            names = (name for name in filesystem.glob(place) if _is_meant(place, name))
            return Found(text=text, files=_matches(text, names, filesystem))
        if filesystem.isdir(place):
            files = _listed(filesystem.find(place), place, filesystem)
            return Found(text=text, files=files, directory=place)
        if not filesystem.exists(place):
            raise DataError(f"data {text}: no such file; check the URL")
    return Found(text=text, files=(DataFile(name=text, path=place, filesystem=filesystem),))


def _matches(text: str, paths: Iterable[str], filesystem: Any) -> tuple[DataFile, ...]:
    shown = sorted(set(paths))  # With two of "**" some come more than once.
    if not shown:
        raise DataError(f"data {text}: no file matches; check the pattern (the working directory is {Path.cwd()})")
    return tuple(DataFile(name=path, path=path, filesystem=filesystem) for path in shown)


def _listed(paths: Iterable[str], root: str, filesystem: Any = None) -> tuple[DataFile, ...]:
    named = [(_below_root(path, root), path) for path in paths]
    return tuple(
        DataFile(name=name, path=path, filesystem=filesystem)
        for name, path in sorted(named)
        if all(map(_counts, name.split("/")))
    )


def _below_root(path: str, root: str) -> str:
    """The name of a file by its place below the root. Most begin with that, and there may be a million."""
    before = root.rstrip("/") + "/"
    if path.startswith(before):
        return path[len(before) :].lstrip("/")
    return os.path.relpath(path, root).replace(os.sep, "/")


def _is_meant(pattern: str, path: str) -> bool:
    """Whether each part of the path that stands for a wildcard, or comes after one, counts or is named: ``_b*``."""
    named, parts = ([part for part in text.split("/") if part] for text in (pattern, path))
    fixed = next(number for number, part in enumerate(named) if _GLOB & set(part))
    hidden = [part for part in named if not _counts(part)]
    return all(_counts(part) or any(fnmatchcase(part, one) or part == one for one in hidden) for part in parts[fixed:])


def _counts(name: str) -> bool:
    return not name.startswith((".", "_"))
