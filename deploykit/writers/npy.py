"""One structured array per file: a ``sample_id`` field and one field per output, read by a plain ``np.load``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from deploykit.errors import UsageError
from deploykit.storage.storedarray import open_npy
from deploykit.tensors import TensorSpec
from deploykit.writers.base import NUMBERS, SAMPLE_ID, Arrays, Batch, Writer, empty_rows, of_one_shape

__all__ = ["NpyWriter"]

_CHUNK_BYTES = 512 * 2**10


class NpyWriter(Writer):
    """``np.load(path)`` gives the rows; ``["logits.mean"]`` of it one output, ``["sample_id"]`` the row numbers."""

    extension: ClassVar[str] = "npy"
    dtypes: ClassVar[frozenset[str]] = NUMBERS

    def __init__(self, outputs: Sequence[TensorSpec]) -> None:
        super().__init__(outputs)
        for spec in self.outputs:
            if not spec.name.isascii():
                raise UsageError(
                    f"writer npy: the output name {spec.name!r} is not ASCII, as the format needs; use --writer pt"
                )

    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:
        """Append batch by batch behind a header that already names ``rows``; memory holds one batch.

        Raises:
            RunError: a batch whose dynamic dimensions have other sizes than those of the first.
        """
        dtype: np.dtype[Any] | None = None
        with path.open("wb", buffering=2**20) as file:
            for batch in of_one_shape(self.outputs, batches, "npy"):
                if dtype is None:
                    dtype = self._dtype(batch.outputs)
                    _write_header(file, dtype, rows)
                file.write(self._records(batch, dtype).view(np.uint8).data)
            if dtype is None:
                _write_header(file, self._dtype({spec.name: empty_rows(spec) for spec in self.outputs}), rows)

    def read(self, path: Path) -> Iterator[Batch]:
        """The rows in batches of about 512 KiB."""
        stored = open_npy(path)
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

    def _records(self, batch: Batch, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        records = np.empty(len(batch), dtype)
        records[SAMPLE_ID] = batch.sample_ids
        for spec in self.outputs:
            records[spec.name] = batch.outputs[spec.name]
        return records

    def _dtype(self, arrays: Arrays) -> np.dtype[Any]:
        # Little-endian by name, so that the bytes are the same on every machine.
        fields = [(spec.name, spec.numpy_dtype.newbyteorder("<"), arrays[spec.name].shape[1:]) for spec in self.outputs]
        return np.dtype([(SAMPLE_ID, "<i8"), *fields])


def _write_header(file: IO[bytes], dtype: np.dtype[Any], rows: int) -> None:
    description = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_2_0(file, {"descr": description, "fortran_order": False, "shape": (rows,)})
