"""The files of a spool: values one after another, read by position."""

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from deploykit.errors import DataError
from deploykit.tensors import TEXT, TensorSpec

__all__ = ["HashedFile", "KeptColumn", "kept_names", "read_kept", "read_values"]

Array = np.ndarray[Any, Any]


class HashedFile:
    """A file to append arrays to, with a digest of all of it.

    Attributes:
        size: bytes that were written.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self.size = 0

    def write(self, array: Array) -> None:
        """Append a C-contiguous array of numbers."""
        data = array.reshape(-1).view(np.uint8).data
        self._file.write(data)
        self._digest.update(data)
        self.size += array.nbytes

    def flush(self) -> None:
        """Wait until it is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def digest(self) -> str:
        """SHA-256 in hexadecimal."""
        return self._digest.hexdigest()


class KeptColumn:
    """A column of values to keep; of text, UTF-8 and the place where each ends, with all bits turned where it is None.

    Attributes:
        files: what it is written to.
    """

    def __init__(self, spec: TensorSpec, number: int, create: Callable[[str], HashedFile]) -> None:
        self.files = [create(name) for name in kept_names(spec, number)]

    def write(self, array: Array) -> None:
        """Append the values of some rows."""
        values, *ends = self.files
        if not ends:
            values.write(array)
            return
        texts = [(text or "").encode("utf-8", "surrogatepass") for text in array.tolist()]
        found = values.size + np.cumsum([len(text) for text in texts], dtype=np.int64)
        ends[0].write(np.where([text is None for text in array.tolist()], ~found, found))
        values.write(np.array(bytearray(b"".join(texts)), np.uint8))


def kept_names(spec: TensorSpec, number: int) -> tuple[str, ...]:
    """The files of a kept column."""
    return (_values_name(number), _ends_name(number)) if spec.dtype == TEXT else (_values_name(number),)


def read_kept(folder: Path, spec: TensorSpec, number: int, start: int, stop: int) -> Array:
    """Rows ``[start, stop)`` of a kept column.

    Raises:
        DataError: the file is shorter, or cannot be read.
    """
    path, rows = folder / _values_name(number), stop - start
    if spec.dtype != TEXT:
        shape = [int(size) for size in spec.row_shape]
        offset = start * math.prod(shape) * spec.numpy_dtype.itemsize
        return read_values(path, spec.numpy_dtype, rows * math.prod(shape), offset).reshape(rows, *shape)
    before = [0] if start == 0 else []
    first = max(start - 1, 0)
    ends = read_values(folder / _ends_name(number), np.dtype(np.int64), stop - first, first * 8).tolist()
    ends = [*before, *ends]
    edges = [~end if end < 0 else end for end in ends]
    data = read_values(path, np.dtype(np.uint8), edges[-1] - edges[0], edges[0]).tobytes()
    texts = np.empty(rows, object)
    for row in (row for row in range(rows) if ends[row + 1] >= 0):
        texts[row] = data[edges[row] - edges[0] : edges[row + 1] - edges[0]].decode("utf-8", "surrogatepass")
    return texts


def read_values(path: Path, dtype: np.dtype[Any], count: int, offset: int) -> Array:
    """So many values from the byte ``offset`` on.

    Raises:
        DataError: the file is shorter, or cannot be read.
    """
    try:
        values = np.fromfile(path, dtype, count, offset=offset)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); predict into a new run directory") from error
    if len(values) != count:
        raise DataError(f"{path}: is truncated; remove {path.parent}, and predict into a new run directory")
    return values


def _values_name(number: int) -> str:
    return f"kept-{number}.bin"


def _ends_name(number: int) -> str:
    return f"ends-{number}.bin"
