"""One array inside a file, read by position.

Reads go straight into a fresh array: nothing is mapped, so the memory of the process does not grow with the rows that
were read, and any thread may read.
"""

import math
from pathlib import Path
from typing import IO, Any

import numpy as np

from deploykit.errors import DataError
from deploykit.storage.locations import DataFile, PositionedFile, local_file

__all__ = ["MOST_HEADER", "StoredArray", "open_npy", "read_header"]

Array = np.ndarray[Any, Any]
Header = tuple[tuple[int, ...], bool, np.dtype[Any]]

MOST_HEADER = 10_000
"""So many characters of a header ``numpy.load`` reads where it is not told to read more."""

# A read per element of the row: beyond this, column-major data is refused instead of read slowly.
_MOST_COLUMNS = 16_384

_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class StoredArray:
    """An uncompressed array of at least one dimension, at ``offset`` in a file.

    Attributes:
        dtype: in the byte order of this machine; reads convert.
        shape: its first dimension are the rows.
    """

    def __init__(self, file: DataFile, offset: int, header: Header) -> None:
        self.shape, self._by_column, self._stored = header
        self.dtype = self._stored.newbyteorder("=")
        self._name, self._offset = file.name, offset
        self._width = math.prod(self.shape[1:])
        # Column-major order of rows without elements inside is the same as row-major order.
        self._by_column = self._by_column and len(self.shape) > 1
        self._check(file.size_and_version()[0])
        self._file = PositionedFile(file)

    @property
    def end(self) -> int:
        """The position after the last byte."""
        return self._offset + math.prod(self.shape) * self.dtype.itemsize

    def _check(self, size: int) -> None:
        if size < self.end:
            raise DataError(
                f"data {self._name}: truncated: its header promises {list(self.shape)} {self.dtype}, "
                f"{self.end} bytes with the header, the file has {size}; copy or write it again"
            )
        if self._by_column and self._width > _MOST_COLUMNS:
            raise DataError(
                f"data {self._name}: in Fortran (column-major) order with {self._width} values per row, too slow to "
                "read by rows; save it with np.save(path, np.ascontiguousarray(array))"
            )

    def rows(self, start: int, stop: int) -> Array:
        """Rows ``[start, stop)``: a fresh, C-contiguous, writable array.

        Raises:
            DataError: the file became shorter, or cannot be read.
        """
        block = self._columns(start, stop) if self._by_column else self._read_rows(start, stop)
        if not self._stored.isnative:
            block = block.astype(self.dtype)
        return block

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_rows(self, start: int, stop: int) -> Array:
        block = np.empty((stop - start, *self.shape[1:]), self._stored)
        self._fill(block, start * self._width)
        return block

    def _columns(self, start: int, stop: int) -> Array:
        columns = np.empty((self._width, stop - start), self._stored)
        for index, column in enumerate(columns):
            self._fill(column, index * self.shape[0] + start)
        return np.ascontiguousarray(columns.reshape(*self.shape[:0:-1], stop - start).T)

    def _fill(self, block: Array, first_element: int) -> None:
        if not block.nbytes:
            return
        position = self._offset + first_element * self._stored.itemsize
        room = block.reshape(-1).view(np.uint8).data
        while room:
            count = self._file.read_into(room, position)
            if not count:
                raise DataError(f"data {self._name}: became shorter while it was read, at byte {position}")
            room, position = room[count:], position + count


def open_npy(file: DataFile | Path, *, most_header: int = MOST_HEADER) -> StoredArray:
    """Open a ``.npy`` file; a header of more than ``most_header`` characters is refused.

    Raises:
        DataError: not a npy file, truncated, of objects, or without rows to count.
    """
    file = local_file(file) if isinstance(file, Path) else file
    with file.open() as opened:
        header = read_header(opened, file.name, most_header=most_header)
        offset = opened.tell()
    return StoredArray(file, offset, header)


def read_header(file: IO[bytes], what: str, *, most_header: int = MOST_HEADER) -> Header:
    """Shape, whether in Fortran order, and dtype; the file is left at the first byte of the array.

    Raises:
        DataError: not the npy format, of objects (a pickle), or a single number.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version not in _HEADER_READERS:
            raise ValueError(f"npy format version {version}")
        shape, by_column, dtype = _HEADER_READERS[version](file, max_header_size=most_header)
    # The header is text that numpy tokenizes and evaluates as a Python literal: damage raises nearly anything.
    except Exception as error:
        raise DataError(f"data {what}: not a readable npy array ({error}); write it with np.save") from error
    if dtype.hasobject:
        raise DataError(
            f"data {what}: an array of Python objects, which is a pickle and is not opened; "
            "save numbers: np.save(path, np.stack(list(array)))"
        )
    if not shape:
        raise DataError(f"data {what}: a single number; the first dimension must be the rows")
    return shape, by_column, dtype
