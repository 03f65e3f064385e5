"""Rows of a safetensors file: one tensor per input. The format needs no package to be read."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from deploykit.errors import DataError
from deploykit.sources.arrays import ArraysSource, chosen_arrays
from deploykit.sources.reading import Reading
from deploykit.storage.locations import DataFile, Found
from deploykit.storage.storedarray import StoredArray
from deploykit.tensors import TensorSpec

__all__ = ["TensorFileSource"]

_MOST_HEADER_BYTES = 100 * 10**6
"""The limit that the format itself sets."""

_DTYPES = {
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "BOOL": "|b1",
    "I8": "|i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
    "U8": "|u1", "U16": "<u2", "U32": "<u4", "U64": "<u8",
}  # fmt: skip


class TensorFileSource(ArraysSource):
    """Tensors by the names of the model's inputs, read by position; the first dimension are the rows.

    Raises:
        DataError: the file is missing, damaged or truncated, or does not fit the model.
    """

    def __init__(self, found: Found, inputs: Sequence[TensorSpec], reading: Reading) -> None:
        (file,) = found.files
        tensors, first = _header(file)
        notes: list[str] = []
        names = chosen_arrays(file, list(tensors), inputs, reading, notes)
        super().__init__(
            file, "safetensors", lambda name: _stored(file, name, tensors[name], first), names, inputs, notes
        )


def _header(file: DataFile) -> tuple[dict[str, Any], int]:
    """The tensors by name, and the position of the first byte of data."""
    try:
        with file.open() as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= _MOST_HEADER_BYTES:
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(opened.read(length))
        tensors = {name: value for name, value in header.items() if name != "__metadata__"}
        ends = [int(tensor["data_offsets"][1]) for tensor in tensors.values()]
        size, end = file.size_and_version()[0], 8 + length + max(ends, default=0)
        if size > end:
            raise ValueError(f"{size - end} bytes follow the last tensor, such as a second file, which would be lost")
    except (ValueError, AttributeError, OSError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"data {file.name}: not a readable safetensors file ({error}); write it with safetensors.numpy.save_file"
        ) from error
    return tensors, 8 + length


def _stored(file: DataFile, name: str, tensor: Any, first: int) -> StoredArray:
    try:
        shape, (start, stop) = tuple(map(int, tensor["shape"])), map(int, tensor["data_offsets"])
        dtype = tensor["dtype"]
        if dtype not in _DTYPES:
            raise DataError(f"data {file.name}: tensor {name!r} is {dtype}; known are {', '.join(_DTYPES)}; convert it")
        stored = np.dtype(_DTYPES[dtype])
        fits = min(shape, default=0) >= 0 <= start and stop - start == stored.itemsize * int(
            np.prod(shape, dtype=object)
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"data {file.name}: tensor {name!r} is damaged ({error!r}); write the file again") from error
    if not fits or not shape:
        raise DataError(
            f"data {file.name}: tensor {name!r} of shape {list(shape)} at bytes {start} to {stop} is no array of rows; "
            "write the file again, with the rows as first dimension"
        )
    return StoredArray(file, first + start, (shape, False, stored))
