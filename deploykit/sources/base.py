"""What a source is, and what sources over files share."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deploykit.errors import DataError, DeploykitError
from deploykit.storage.files import sha256_of
from deploykit.storage.locations import DataFile
from deploykit.tensors import TensorSpec, check_inputs
from deploykit.traces import line_of

__all__ = ["Arrays", "FileIdentity", "Source", "check_header", "fingerprint_of", "json_of"]

Arrays = dict[str, np.ndarray[Any, Any]]

_BLOCK_BYTES = 64 * 2**10
_BLOCKS = 16

_LITTLE_BYTES = 16 * 2**20
"""So much is read in a moment, to tell what it is by all of it; each file counts as one block at least."""


class Source(Protocol):
    """Rows of data, by number.

    A source with columns to keep also has ``kept``, the ``TensorSpec`` of each; one whose opening takes long has
    ``index()``, JSON values that make the next opening of the same data cheap (``Reading.index``). One with rows that
    cannot be in one batch, because a dynamic dimension differs, has ``cuts(start, stop)``: where, between these rows.
    One that reads ahead has ``expect(ranges)``, the calls of ``read`` that come after those that it was told of before,
    and ``depth``, how many of them it reads at the same time. One that has to read many rows to give a few has
    ``rows_together``: how many at most. One whose neighbouring rows can always be read in one call has ``joins``. One
    that pads rows to the longest of a batch has ``pads``, by input what it fills them with; ``--pad`` needs that. One
    over files has ``is_unchanged()``: whether none of them was written to since they were opened, as far as they are
    on this machine; an ``OSError`` where that cannot be told. One over several has ``file_of(row)``, for messages.

    Attributes:
        notes: what was ignored or assumed, for people to read.
    """

    notes: list[str]

    def __len__(self) -> int:
        """How many rows."""
        ...

    def read(self, start: int, stop: int) -> Arrays:
        """Rows ``[start, stop)``: by input name, fresh C-contiguous arrays ``(stop - start, ...)``.

        Kept columns are there too, under ``KEPT`` and their own names; text as object arrays. What a plug-in gives is
        copied and counted, so that memory which it fills again does no harm.

        Raises:
            DataError: rows that do not fit the model, or that cannot be read.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """JSON values that are equal for equal data; cheap, so it looks at a sample of the rows (``json_of``)."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


def check_header(name: str, inputs: Sequence[TensorSpec], headers: dict[str, tuple[Any, tuple[int, ...]]]) -> None:
    """Hold dtype and shape of whole arrays against the model.

    Raises:
        DataError: they do not fit.
    """
    # Nothing is allocated: every element is the same one.
    stands_for = {key: np.broadcast_to(np.empty((), dtype), shape) for key, (dtype, shape) in headers.items()}
    try:
        check_inputs(inputs, stands_for)
    except DataError as error:
        raise DataError(f"data {name}: {error}") from None


def fingerprint_of(source: Source) -> dict[str, Any]:
    """What tells these data from others, as JSON values.

    Raises:
        DataError: the source raised something, gave nothing, or anything that JSON does not hold.
    """
    found = json_of(source, "fingerprint")
    if not found or not isinstance(found, dict):
        trouble = "which is no dict" if found else "which is the same for all data"
        raise DataError(
            f"source {type(source).__qualname__}: its fingerprint() gave {str(found)[:200]}, {trouble}; it must give a "
            "dict with at least one value that changes with them, such as a digest"
        )
    return found


def json_of(source: Source, method: str) -> Any:
    """What ``fingerprint`` or ``index`` of the source gives, as JSON gives it back; numpy's numbers are taken.

    Raises:
        DataError: it raised something, or holds anything else that JSON does not.
    """
    what = f"source {type(source).__qualname__}: its {method}()"
    try:
        found = getattr(source, method)()
    except (DeploykitError, OSError):
        raise
    except Exception as error:  # A source may be the user's own code.
        line = line_of(error)
        where = f" ({line})" if line else ""
        raise DataError(f"{what} raised {type(error).__name__}: {error}{where}; mend it") from error
    try:
        return json.loads(json.dumps(found, default=_plain))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{what} gave {str(found)[:200]} ({error}); it must give JSON "
            "values: texts, numbers, lists and dicts of these"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is none of JSON's")


class FileIdentity:
    """What tells files from others, and from what they were at the first look: their sizes, and what is in them.

    Of little data that is all that is in it. Of much it is a sample, and the times of change. Only names inside a
    directory are in it: the data may move between a run and its resume.
    """

    def __init__(self, files: Sequence[DataFile]) -> None:
        self._files = tuple(files)
        self._versions: dict[str, Any] | None = None
        self._values: dict[str, Any] = {}

    def values(self) -> dict[str, Any]:
        """JSON values, those of the first look; a digest of the files, or of at most 1 MiB of them, is among them."""
        self._look()
        return self._values

    def holds(self) -> bool:
        """Whether none was written to, replaced or removed since the first look.

        Only files of this machine are looked at: what a store says of a file may be what it said before.

        Raises:
            OSError: a file cannot be looked at, as on a network file system whose server does not answer.
        """
        if not all(file.is_local for file in self._files):
            return True
        known = self._look()
        try:
            return known == _versions(self._files)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _look(self) -> dict[str, Any]:
        """The versions of the first look, which is this one where there was none."""
        if self._versions is None:
            versions = _versions(self._files)
            self._values = _identity(self._files, versions)
            self._versions = versions
        return self._versions


def _identity(files: Sequence[DataFile], versions: dict[str, Any]) -> dict[str, Any]:
    size = versions["size_bytes"]
    if all(file.is_local for file in files) and size + len(files) * _BLOCK_BYTES <= _LITTLE_BYTES:
        counts: dict[str, Any] = {name: versions[name] for name in ("size_bytes", "files") if name in versions}
        return {**counts, "sha256": _digest(files)}
    return {**versions, "sha256_sample": _sample(files, size)}


def _digest(files: Sequence[DataFile]) -> str:
    """A digest of all that is in the files, and of the names of several."""
    digest = hashlib.sha256()
    for name, file in zip([""] if len(files) == 1 else _short_names(files), files, strict=True):
        try:
            content = sha256_of(Path(file.path))
        except OSError:
            content = "cannot be read"  # Whoever reads its rows says why, or leaves them out.
        digest.update(f"{name}\0{content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _versions(files: Sequence[DataFile]) -> dict[str, Any]:
    versions = [file.size_and_version() for file in files]
    known = {"size_bytes": sum(size for size, _ in versions)}
    if len(files) == 1:
        return {**known, "mtime_ns" if files[0].is_local else "version": versions[0][1]}
    named = hashlib.sha256()
    for name, (size, version) in zip(_short_names(files), versions, strict=True):
        named.update(f"{name}\0{size}\0{version}\n".encode(errors="surrogateescape"))
    return {**known, "files": len(files), "sha256_files": named.hexdigest()}


def _short_names(files: Sequence[DataFile]) -> list[str]:
    """The names without the folders that all of them share."""
    parts = [file.name.split("/") for file in files]
    shared = 0
    while parts and all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def _sample(files: Sequence[DataFile], size_bytes: int) -> str:
    """A digest of blocks spread over one file, or of the first block of files spread over many."""
    digest = hashlib.sha256()
    if len(files) == 1:
        for position in _sample_positions(size_bytes):
            digest.update(_block(files[0], position))
    else:
        for index in sorted({(len(files) - 1) * number // (_BLOCKS - 1) for number in range(_BLOCKS)}):
            digest.update(_block(files[index], 0))
    return digest.hexdigest()


def _block(file: DataFile, position: int) -> bytes:
    with file.open() as opened:
        opened.seek(position)
        return opened.read(_BLOCK_BYTES)


def _sample_positions(size: int) -> list[int]:
    """Where the blocks of the sample begin: the first, the last, and evenly between."""
    if size <= _BLOCKS * _BLOCK_BYTES:
        return list(range(0, size, _BLOCK_BYTES))
    last = size - _BLOCK_BYTES
    return [last * index // (_BLOCKS - 1) for index in range(_BLOCKS)]
