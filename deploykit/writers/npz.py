"""An archive of arrays, read by a plain ``np.load``: ``sample_id`` and one array per output."""

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from deploykit.errors import RunError
from deploykit.storage.storedarray import read_header
from deploykit.tensors import TensorSpec
from deploykit.writers.base import SAMPLE_ID, TEXT, Batch, Writer, empty_rows, of_one_shape, texts_of

__all__ = ["NpzWriter"]

_BUFFER_BYTES = 2 * 2**20
_CHUNK_BYTES = 512 * 2**10
_IDS = TensorSpec(name=SAMPLE_ID, dtype="int64", shape=("batch",))


class NpzWriter(Writer):
    """``np.load(path)["logits.mean"]``. A zip is written array by array, and rows come with a piece of each: what does
    not fit into a small buffer waits in unnamed files beside it.
    """

    extension: ClassVar[str] = "npz"

    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:
        """Write an uncompressed archive; memory holds one batch.

        Raises:
            RunError: a batch whose dynamic dimensions have other sizes than those of the first; a text that numpy
                would change.
        """
        with contextlib.ExitStack() as stack:
            columns = [_Column(spec, path.parent, stack) for spec in (_IDS, *self.outputs)]
            for batch in of_one_shape(self.outputs, batches, "npz"):
                for column in columns:
                    column.append(batch.sample_ids if column.spec is _IDS else batch.outputs[column.spec.name])
            with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
                for column in columns:
                    # A fixed date: the file depends on the predictions alone.
                    member = zipfile.ZipInfo(f"{column.spec.name}.npy", (1980, 1, 1, 0, 0, 0))
                    with archive.open(member, "w", force_zip64=True) as file:
                        column.store(file, rows)

    def read(self, path: Path) -> Iterator[Batch]:
        """The rows in batches of about 512 KiB."""
        with zipfile.ZipFile(path) as archive, contextlib.ExitStack() as stack:
            names = [SAMPLE_ID, *(spec.name for spec in self.outputs)]
            members = {name: _Member(stack.enter_context(archive.open(f"{name}.npy"))) for name in names}
            rows = members[SAMPLE_ID].rows
            step = max(1, _CHUNK_BYTES // sum(member.row_bytes for member in members.values()))
            for start in range(0, rows, step):
                arrays = {name: member.next(min(step, rows - start)) for name, member in members.items()}
                yield Batch(sample_ids=arrays.pop(SAMPLE_ID), outputs=arrays)


class _Column:
    """One array on its way: its rows wait until they can be copied in one go, texts until the longest is known."""

    def __init__(self, spec: TensorSpec, directory: Path, stack: contextlib.ExitStack) -> None:
        self.spec = spec
        self._file = tempfile.SpooledTemporaryFile(_BUFFER_BYTES, dir=str(directory))  # noqa: SIM115 (the stack closes it)
        stack.callback(self._file.close)
        self._row_shape = empty_rows(spec).shape[1:]
        self._pieces: list[tuple[int, np.dtype[Any]]] = []

    def append(self, array: np.ndarray[Any, Any]) -> None:
        if self.spec.dtype == TEXT:
            array = self._fixed_width(array)
            self._pieces.append((array.size, array.dtype))
        self._row_shape = array.shape[1:]
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def _fixed_width(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        texts = texts_of(self.spec, array)
        if any(text.endswith("\0") for text in texts):
            raise RunError(
                f"writer npz: a text of {self.spec.name!r} ends in a NUL, which numpy takes for its end; use the "
                "writer parquet, arrow, jsonl or csv"
            )
        return np.array(texts, f"<U{max(map(len, texts), default=1) or 1}").reshape(array.shape)

    def store(self, file: IO[bytes], rows: int) -> None:
        dtype = self._dtype()
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (rows, *self._row_shape)})
        self._file.seek(0)
        if self.spec.dtype != TEXT:
            shutil.copyfileobj(self._file, file, _CHUNK_BYTES)
        for size, stored in self._pieces:
            piece = np.frombuffer(self._file.read(size * stored.itemsize), stored)
            file.write(piece.astype(dtype, copy=False).view(np.uint8).data)

    def _dtype(self) -> np.dtype[Any]:
        if self.spec.dtype != TEXT:
            return self.spec.numpy_dtype.newbyteorder("<")
        return max((dtype for _, dtype in self._pieces), key=lambda dtype: dtype.itemsize, default=np.dtype("<U1"))


class _Member:
    """One array of an archive, read front to back."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        shape, _, self._dtype = read_header(file, file.name)
        self.rows, self._row_shape = shape[0], shape[1:]
        self.row_bytes = max(1, self._dtype.itemsize * int(np.prod(self._row_shape, dtype=int)))

    def next(self, rows: int) -> np.ndarray[Any, Any]:
        count = rows * int(np.prod(self._row_shape, dtype=int))
        array = np.frombuffer(self._file.read(count * self._dtype.itemsize), self._dtype, count)
        native = object if self._dtype.kind == "U" else self._dtype.newbyteorder("=")
        return array.astype(native, copy=False).reshape(rows, *self._row_shape)
