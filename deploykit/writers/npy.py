"""One structured array per file: a ``sample_id`` field and one field per output, read by a plain ``np.load``."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from deploykit.errors import RunError, UsageError
from deploykit.storedarray import open_npy
from deploykit.tensors import TensorSpec
from deploykit.writers.base import SAMPLE_ID, Batch, Writer, checked, refuse_text

__all__ = ["NpyWriter"]

_CHUNK_BYTES = 512 * 2**10


class NpyWriter(Writer):
    """``np.load(path)`` gives the rows; ``["logits.mean"]`` of it one output, ``["sample_id"]`` the row numbers."""

    extension: ClassVar[str] = "npy"

    def __init__(self, outputs: Sequence[TensorSpec]) -> None:
        super().__init__(outputs)
        for spec in self.outputs:
            if not spec.name.isascii():
                raise UsageError(
                    f"writer npy: the output name {spec.name!r} is not ASCII, as the format needs; use --writer pt"
                )
        refuse_text("npy", self.outputs)

    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:
        """Append batch by batch behind a header that already names ``rows``; memory holds one batch.

        Raises:
            RunError: a batch whose dynamic dimensions have other sizes than those of the first.
        """
        dtype: np.dtype[Any] | None = None
        with path.open("wb", buffering=2**20) as file:
            for batch in batches:
                if dtype is None:
                    dtype = self._row_dtype(checked(self.outputs, batch))
                    _write_header(file, dtype, rows)
                file.write(self._records(batch, dtype).view(np.uint8).data)
            if dtype is None:
                _write_header(file, self._empty_dtype(), rows)

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
        checked(self.outputs, batch)
        records = np.empty(len(batch), dtype)
        records[SAMPLE_ID] = batch.sample_ids
        for spec in self.outputs:
            array = batch.outputs[spec.name]
            if array.shape[1:] != dtype[spec.name].shape:
                raise RunError(
                    f"writer npy: output {spec.name!r} has rows of shape {list(array.shape[1:])} from row "
                    f"{batch.sample_ids[0]} on, and {list(dtype[spec.name].shape)} before; one npy file holds one "
                    "shape: use --writer pt, or pad the inputs to one size"
                )
            records[spec.name] = array
        return records

    def _row_dtype(self, batch: Batch) -> np.dtype[Any]:
        return self._dtype({spec.name: batch.outputs[spec.name].shape[1:] for spec in self.outputs})

    def _empty_dtype(self) -> np.dtype[Any]:
        return self._dtype(
            {spec.name: tuple(d if isinstance(d, int) else 0 for d in spec.row_shape) for spec in self.outputs}
        )

    def _dtype(self, shapes: dict[str, tuple[int, ...]]) -> np.dtype[Any]:
        # Little-endian by name, so that the bytes are the same on every machine.
        fields = [(spec.name, spec.numpy_dtype.newbyteorder("<"), shapes[spec.name]) for spec in self.outputs]
        return np.dtype([(SAMPLE_ID, "<i8"), *fields])


def _write_header(file: IO[bytes], dtype: np.dtype[Any], rows: int) -> None:
    description = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_2_0(file, {"descr": description, "fortran_order": False, "shape": (rows,)})
