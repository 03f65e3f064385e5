"""One structured array per file: a ``sample_id`` field and one field per output, read by a plain ``np.load``."""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from deploykit.errors import UnfitWriterError
from deploykit.storage.storedarray import MOST_HEADER, open_npy
from deploykit.tensors import TensorSpec, empty_rows
from deploykit.writers.base import NUMBERS, SAMPLE_ID, Arrays, Batch, Writer, of_one_shape, stored_dtype

__all__ = ["ANY_HEADER", "NpyWriter", "write_records"]

ANY_HEADER = 2**32
"""For ``max_header_size``: no header of the format is longer."""

_CHUNK_BYTES = 512 * 2**10
_LONGEST_SIZE = 2**31 - 1  # A record of numpy has no more bytes.


class NpyWriter(Writer):
    """``np.load(path)`` gives the rows; ``["logits.mean"]`` of it one output, ``["sample_id"]`` the row numbers."""

    extension: ClassVar[str] = "npy"
    dtypes: ClassVar[frozenset[str]] = NUMBERS

    def __init__(self, outputs: Sequence[TensorSpec]) -> None:
        super().__init__(outputs)
        for spec in self.outputs:
            if not spec.name.isascii():
                raise UnfitWriterError(
                    f"writer npy: the output name {spec.name!r} is not ASCII, as the format needs", ["pt"]
                )

    def require_fit(self) -> None:
        """Refuse more columns than ``numpy.load`` reads.

        Raises:
            UsageError: the header, which names each of them, would be too long.
        """
        fields = [(spec.name, stored_dtype(spec).str, *_longest(spec)) for spec in self.outputs]
        file = io.BytesIO()
        _write_header(file, [(SAMPLE_ID, "<i8"), *fields], 0)
        if (length := len(file.getvalue())) > MOST_HEADER:
            raise UnfitWriterError(
                f"writer npy: a header that names {len(self.outputs)} columns takes {length} bytes, and numpy.load "
                f"reads no longer one than {MOST_HEADER}",
                ["npz", "parquet"],
            )

    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:
        """Append batch by batch behind a header that already names ``rows``; memory holds one batch.

        Raises:
            RunError: a batch whose dynamic dimensions have other sizes than those of the first.
        """
        write_records(path, self.outputs, batches, rows)

    def read(self, path: Path) -> Iterator[Batch]:
        """The rows in batches of about 512 KiB."""
        stored = open_npy(path, most_header=ANY_HEADER)
        try:
            step = max(1, _CHUNK_BYTES // max(stored.dtype.itemsize, 1))
            for start in range(0, stored.shape[0], step):
                records = stored.rows(start, min(start + step, stored.shape[0]))
                yield Batch(
                    sample_ids=np.ascontiguousarray(records[SAMPLE_ID]),
                    outputs={spec.name: np.ascontiguousarray(records[spec.name]) for spec in self.outputs},
                )
        finally:
            stored.close()


def write_records(path: Path, outputs: Sequence[TensorSpec], batches: Iterable[Batch], rows: int) -> None:
    """Write what an ``NpyWriter`` does, of any number of outputs.

    Raises:
        RunError: a batch whose dynamic dimensions have other sizes than those of the first.
    """
    dtype: np.dtype[Any] | None = None
    with path.open("wb", buffering=2**20) as file:
        for batch in of_one_shape(outputs, batches, "npy"):
            if dtype is None:
                dtype = _dtype(outputs, batch.outputs)
                _write_header(file, np.lib.format.dtype_to_descr(dtype), rows)
            file.write(_records(outputs, batch, dtype).view(np.uint8).data)
        if dtype is None:
            dtype = _dtype(outputs, {spec.name: empty_rows(spec) for spec in outputs})
            _write_header(file, np.lib.format.dtype_to_descr(dtype), rows)


def _records(outputs: Sequence[TensorSpec], batch: Batch, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    records = np.empty(len(batch), dtype)
    records[SAMPLE_ID] = batch.sample_ids
    for spec in outputs:
        records[spec.name] = batch.outputs[spec.name]
    return records


def _dtype(outputs: Sequence[TensorSpec], arrays: Arrays) -> np.dtype[Any]:
    fields = [(spec.name, stored_dtype(spec), arrays[spec.name].shape[1:]) for spec in outputs]
    return np.dtype([(SAMPLE_ID, "<i8"), *fields])


def _longest(spec: TensorSpec) -> list[tuple[int, ...]]:
    """The shape of a row as a header has it, which leaves out that of a scalar; dynamic sizes take the most digits."""
    shape = tuple(_LONGEST_SIZE if isinstance(size, str) else size for size in spec.row_shape)
    return [shape] if shape else []


def _write_header(file: IO[bytes], description: Any, rows: int) -> None:
    np.lib.format.write_array_header_2_0(file, {"descr": description, "fortran_order": False, "shape": (rows,)})
