"""Rows that came one after another, put into files so that they can be read by number.

::

    spool/input-0.bin   the values of the first input, row after row
    spool/starts.bin    int64: the first row of each run of rows that have the same shapes
    spool/shapes.bin    int64, for each run: by input the byte where it begins, and the shape of a row
    spool/spool.json    written last, and kept when the others are removed: target, inputs, rows, digest

Where no dimension is dynamic there is one run.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from deploykit.errors import DataError
from deploykit.files import TEMPORARY_PREFIX, write_json
from deploykit.sources.base import Arrays
from deploykit.sources.factory import without_folder
from deploykit.tensors import TensorSpec

__all__ = ["Spool", "SpoolSource", "clear", "is_spool", "spooled_facts"]

FACTS = "spool.json"
_STARTS, _SHAPES = "starts.bin", "shapes.bin"


class Spool:
    """Takes rows; memory does not grow with them. On any error nothing is left but an empty folder.

    Raises:
        OSError: the disk is full or not writable.
    """

    def __init__(self, folder: Path, target: str, inputs: Sequence[TensorSpec]) -> None:
        self._folder, self._target, self._inputs = folder, target, tuple(inputs)
        self._stack = contextlib.ExitStack()
        self._shapes: list[tuple[int, ...]] = []
        self.rows = self.size_bytes = self._runs = 0

    def __enter__(self) -> Self:
        clear(self._folder)
        self._folder.mkdir(exist_ok=True)
        self._values = [_Hashed(self._open(_values_name(number))) for number in range(len(self._inputs))]
        self._starts, self._table = _Hashed(self._open(_STARTS)), _Hashed(self._open(_SHAPES))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
            return
        # What is still in a buffer may not fit onto the disk either.
        with contextlib.suppress(OSError):
            self._stack.close()
        clear(self._folder)

    def add(self, arrays: Arrays) -> None:
        """Put rows at the end: by input name, C-contiguous arrays with the rows as first dimension."""
        ordered = [arrays[spec.name] for spec in self._inputs]
        shapes = [array.shape[1:] for array in ordered]
        if shapes != self._shapes:
            self._shapes = shapes
            self._begin_run(shapes)
        for file, array in zip(self._values, ordered, strict=True):
            file.write(array)
            self.size_bytes += array.nbytes
        self.rows += len(ordered[0])

    def _open(self, name: str) -> IO[bytes]:
        return self._stack.enter_context((self._folder / name).open("wb", buffering=2**20))

    def _begin_run(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self._runs += 1
        self._starts.write(np.array([self.rows], np.int64))
        record = [number for file, shape in zip(self._values, shapes, strict=True) for number in (file.size, *shape)]
        self._table.write(np.array(record, np.int64))

    def _finish(self) -> None:
        files = [*self._values, self._starts, self._table]
        for file in files:
            file.flush()
        self._stack.close()
        digest = hashlib.sha256("".join(file.digest() for file in files).encode())
        facts = {
            "target": without_folder(self._target),
            "inputs": [spec.to_json() for spec in self._inputs],
            "rows": self.rows,
            "runs": self._runs,
            "size_bytes": self.size_bytes,
            "sha256": digest.hexdigest(),
        }
        write_json(self._folder / FACTS, facts)


class _Hashed:
    """A file to append arrays to, with a digest of all of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self.size = 0

    def write(self, array: np.ndarray[Any, Any]) -> None:
        data = array.reshape(-1).view(np.uint8).data
        self._file.write(data)
        self._digest.update(data)
        self.size += array.nbytes

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def digest(self) -> str:
        return self._digest.hexdigest()


class SpoolSource:
    """The rows in a complete spool, numbered in the order in which they came."""

    def __init__(self, folder: Path, facts: dict[str, Any], inputs: Sequence[TensorSpec]) -> None:
        self.notes: list[str] = []
        self._folder, self._facts, self._inputs = folder, facts, tuple(inputs)
        self._what = f"data {facts['target']}"
        runs, width = facts["runs"], sum(len(spec.shape) for spec in inputs)
        self.is_there = all((folder / name).exists() for name in (_STARTS, _SHAPES))
        self._starts = self._table(_STARTS, runs)
        self._shapes = self._table(_SHAPES, runs, width)

    def __len__(self) -> int:
        return int(self._facts["rows"])

    def read(self, start: int, stop: int) -> Arrays:
        """Rows ``[start, stop)``, of one shape; any thread may read."""
        if not self.is_there:
            raise DataError(
                f"{self._what}, rows {start} to {stop - 1}: were removed from {self._folder} when the run was "
                "finished, and cannot be drawn again; predict into a new run directory"
            )
        if self.cuts(start, stop):
            raise DataError(f"{self._what}, rows {start} to {stop - 1}: have different shapes; pad them to one size")
        run = int(np.searchsorted(self._starts, start, "right")) - 1
        first, record = int(self._starts[run]), self._shapes[run].tolist()
        arrays: Arrays = {}
        for number, spec in enumerate(self._inputs):
            (offset, *shape), record = record[: len(spec.shape)], record[len(spec.shape) :]
            size = math.prod(shape)
            offset += (start - first) * size * spec.numpy_dtype.itemsize
            arrays[spec.name] = self._values(number, offset, (stop - start) * size).reshape(stop - start, *shape)
        return arrays

    def cuts(self, start: int, stop: int) -> list[int]:
        """The rows between ``start`` and ``stop`` where shapes change."""
        first, end = np.searchsorted(self._starts, start, "right"), np.searchsorted(self._starts, stop, "left")
        rows: list[int] = self._starts[first:end].tolist()
        return rows

    def fingerprint(self) -> dict[str, Any]:
        """The target, the number of rows, and a digest of all of them."""
        return {"kind": "spool", **{name: self._facts[name] for name in ("target", "rows", "sha256")}}

    def discard(self) -> None:
        """Remove the rows, which nobody needs any more; what is known of them stays."""
        self.close()
        _remove(self._folder, but=FACTS)
        self.is_there = False

    def close(self) -> None:
        """Let go of files."""
        self._starts = self._shapes = np.empty(0, np.int64)

    def _values(self, number: int, offset: int, count: int) -> np.ndarray[Any, Any]:
        path, dtype = self._folder / _values_name(number), self._inputs[number].numpy_dtype
        try:
            values = np.fromfile(path, dtype, count, offset=offset)
        except OSError as error:
            raise DataError(f"{self._what}: {path} cannot be read ({error}); predict into a new directory") from error
        if len(values) != count:
            raise DataError(
                f"{self._what}: {path} is truncated; remove {self._folder}, and predict into a new directory"
            )
        return values

    def _table(self, name: str, *shape: int) -> np.ndarray[Any, Any]:
        if not self.is_there or not math.prod(shape):
            return np.empty([0] * len(shape), np.int64)
        return np.memmap(self._folder / name, np.int64, "r", shape=shape)


def spooled_facts(folder: Path) -> dict[str, Any] | None:
    """What is known of a complete spool; None where there is none."""
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts


def is_spool(folder: Path) -> bool:
    """Whether a directory holds nothing but what a spool does, complete or not."""
    return folder.is_dir() and all(map(_is_ours, folder.iterdir()))


def clear(folder: Path) -> None:
    """Remove a spool, whatever its state; other files are left alone."""
    if folder.is_dir():
        _remove(folder)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _remove(folder: Path, *, but: str = "") -> None:
    for path in folder.iterdir():
        if _is_ours(path) and path.name != but:
            path.unlink(missing_ok=True)


def _is_ours(path: Path) -> bool:
    return path.suffix == ".bin" or path.name == FACTS or path.name.startswith(TEMPORARY_PREFIX)


def _values_name(number: int) -> str:
    return f"input-{number}.bin"
