"""Places that a URL names, and the files that lie there.

fsspec opens all stores; ``file://`` is this machine and needs no package. Files of a store are named by their path
below its URL; a URL of one file has one, named ``""``.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from deploykit.errors import DeploykitError, MissingExtraError, UsageError
from deploykit.storage.packed import is_plain_name
from deploykit.tally import Told

__all__ = [
    "AT_ONCE",
    "LOCAL_URLS",
    "Store",
    "asking",
    "is_url",
    "local_path",
    "open_filesystem",
]

LOCAL_URLS = ("file://", "local://")

AT_ONCE = 4
"""So many files are sent at the same time, because a store may hold a whole file in memory while it sends it."""

_SLASH_LOST = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)")
"""What pathlib makes of a URL."""


def is_url(place: object) -> bool:
    """Whether a place is in another store than the file systems of this machine.

    >>> is_url("s3://bucket/run"), is_url("file:///data/run"), is_url("run")
    (True, False, False)
    """
    return isinstance(place, str) and "://" in place and not place.startswith(LOCAL_URLS)


def local_path(place: str | os.PathLike[str]) -> Path:
    """The path of a place on this machine.

    Raises:
        UsageError: a URL of another store, also one that was made a path, which lost it a slash.
    """
    text = os.fspath(place)
    if is_url(text):
        raise UsageError(f"{text}: is a URL, and a path of this machine is needed here; name one")
    for prefix in LOCAL_URLS:
        if text.startswith(prefix):
            return Path(unquote(text.removeprefix(prefix), errors="surrogateescape"))
    if lost := _SLASH_LOST.match(text):
        whole = f"{lost[1]}://{text[lost.end() :]}"
        raise UsageError(f"{text}: is neither a path nor a URL; give the whole URL, as text: '{whole}'")
    return Path(text)


def open_filesystem(url: str, subject: str, kind: type[DeploykitError]) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and the path of the URL in it.

    Raises:
        MissingExtraError: fsspec is not installed.
        DeploykitError: of the given ``kind``, about ``subject``: no such store, or its package is not installed.
    """
    try:
        import fsspec
    except ImportError:
        raise MissingExtraError("fsspec", "remote", f"opening {url}") from None
    try:
        filesystem, place = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise kind(f"{subject} {url}: its store needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise kind(
            f"{subject} {url}: {error}; known to fsspec are {', '.join(sorted(fsspec.available_protocols()))}"
        ) from error
    return filesystem, str(place)


class Store:
    """The files at a URL.

    Whatever goes wrong is an error of the ``kind``, about the ``subject``: both as for ``open_filesystem``.
    """

    def __init__(self, url: str, subject: str, kind: type[DeploykitError]) -> None:
        self.url = url.rstrip("/")
        self._subject, self._kind = f"{subject} {self.url}", kind
        self._filesystem, root = open_filesystem(self.url, subject, kind)
        self._root = root.rstrip("/")

    @property
    def name(self) -> str:
        """The last part of the URL."""
        last = self._root.rpartition("/")[2]
        return last if is_plain_name(last) else "root"

    def files(self) -> dict[str, int]:
        """The name and the size in bytes of every file; none where there is nothing."""
        with self._asking("looked at"):
            self._filesystem.invalidate_cache()  # Other machines write there too.
            try:
                found = self._filesystem.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
            return {
                self._name(path): self._size(path, info) for path, info in found.items() if not _is_folder(path, info)
            }

    def _name(self, path: str) -> str:
        name = path.removeprefix(self._root).removeprefix("/")
        if name and not is_plain_name(name):
            raise self._kind(f"{self._subject}: holds a file named {name!r}, which would lie elsewhere; remove it")
        return name

    def _size(self, path: str, info: Mapping[str, Any]) -> int:
        size = info.get("size")
        size = self._filesystem.size(path) if size is None else size
        if size is None:
            raise self._kind(f"{self._subject}: does not tell the size of {path}, so it is no file to copy; name one")
        return int(size)

    def fetch(self, names: Iterable[str], folder: Path, copying: Told | None = None) -> None:
        """Copy the files below ``folder``, or to it the one of a URL of one file.

        ``copying`` is called again and again with the files that are copied and all of them.
        """
        pairs = [(self._path(name), folder / name if name else folder) for name in names]
        for _, local in pairs:
            local.parent.mkdir(parents=True, exist_ok=True)
        with self._asking("read"):
            if not pairs:
                return
            paths, places = [path for path, _ in pairs], [str(local) for _, local in pairs]
            self._filesystem.get(paths, places, **({} if copying is None else {"callback": _telling(copying)}))

    def read(self, name: str) -> bytes:
        """What is in a file, which must be small."""
        with self._asking("read"):
            return bytes(self._filesystem.cat_file(self._path(name)))

    def put(self, files: Mapping[str, Path]) -> None:
        """Send files; an object store shows each when it is whole."""
        names = list(files)
        with self._asking("written"):
            for some in (names[first : first + AT_ONCE] for first in range(0, len(names), AT_ONCE)):
                self._filesystem.put([str(files[name]) for name in some], [self._path(name) for name in some])

    def put_new(self, name: str, file: Path) -> None:
        """Send a file, unless there is one of that name.

        S3, GCS and Azure see to it that of several that come at the same time the first stays; other stores may not.
        """
        there = self._path(name)
        with self._asking("written"):
            # Some stores take no notice of the condition; others refuse it.
            if self._has(there):
                return
            try:
                self._filesystem.put_file(str(file), there, mode="create")
            except OSError:
                if not self._has(there):
                    self._filesystem.put_file(str(file), there)

    def _has(self, path: str) -> bool:
        self._filesystem.invalidate_cache()
        return bool(self._filesystem.exists(path))

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; one that is not there is no error."""
        paths = [self._path(name) for name in names]
        with self._asking("written"):
            try:
                if paths:
                    self._filesystem.rm(paths)
            except FileNotFoundError:  # Of many at a time, a store may ask for all of them.
                for path in paths:
                    with contextlib.suppress(FileNotFoundError):
                        self._filesystem.rm_file(path)

    def refused(self, why: str) -> DeploykitError:
        """The error for what is there."""
        return self._kind(f"{self._subject}: {why}")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _asking(self, what: str) -> contextlib.AbstractContextManager[None]:
        return asking(self._subject, what, self._kind)


def _telling(copying: Told) -> Any:
    """What fsspec tells how many files are copied."""
    from fsspec.callbacks import Callback

    return Callback(hooks={"copying": lambda size, value, **_: copying(value, size)})


@contextlib.contextmanager
def asking(subject: str, what: str, kind: type[DeploykitError]) -> Iterator[None]:
    """Turn whatever a store raises in the block into errors of the ``kind``: the ``subject`` cannot be ``what``."""
    try:
        yield
    except DeploykitError:
        raise
    except Exception as error:  # Many are no OSError: no credentials, no answer.
        why = f"{type(error).__name__}: {error}"
        raise kind(f"{subject}: cannot be {what} ({why}); check the URL and the credentials") from error


def _is_folder(path: str, info: Mapping[str, Any]) -> bool:
    """Stores without folders have empty files that stand for them."""
    return info.get("type") == "directory" or path.endswith("/")
