"""An archive of arrays, read by a plain ``np.load``: ``sample_id`` and one array per output."""

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from deploykit.errors import RunError
from deploykit.storage.storedarray import read_header
from deploykit.tensors import TensorSpec, empty_rows
from deploykit.writers.base import SAMPLE_ID, TEXT, Batch, Writer, of_one_shape, stored_dtype, texts_of

__all__ = ["NpzWriter"]

_BUFFER_BYTES, _MOST_BUFFER_BYTES = 64 * 2**20, 2 * 2**20
"""For all columns together, and for each of a few."""

_CHUNK_BYTES = 512 * 2**10
_IDS = TensorSpec(name=SAMPLE_ID, dtype="int64", shape=("batch",))


class NpzWriter(Writer):
    """``np.load(path)["logits.mean"]``. A zip is written array by array, and rows come with a piece of each: what does
    not fit into small buffers waits in an unnamed file beside it.
    """

    extension: ClassVar[str] = "npz"

    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:
        """Write an uncompressed archive; memory holds one batch.

        Raises:
            RunError: a batch whose dynamic dimensions have other sizes than those of the first; a text that numpy
                would change.
        """
        with tempfile.SpooledTemporaryFile(_MOST_BUFFER_BYTES, dir=str(path.parent)) as unnamed:
            aside, each = _Aside(unnamed), _BUFFER_BYTES // (1 + len(self.outputs))
            columns = [_Column(spec, aside, min(each, _MOST_BUFFER_BYTES)) for spec in (_IDS, *self.outputs)]
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


class _Aside:
    """One unnamed file, to which blocks of all columns are appended until they are wanted."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._end = file, 0

    def put(self, block: bytes | bytearray) -> tuple[int, int]:
        """Its place and size."""
        self._file.seek(self._end)  # ``get`` may have been elsewhere.
        place, self._end = self._end, self._end + self._file.write(block)
        return place, len(block)

    def get(self, place: int, size: int) -> bytes:
        self._file.seek(place)
        return self._file.read(size)


class _Column:
    """One array on its way: its rows wait until they can be copied in one go, texts until the longest is known."""

    def __init__(self, spec: TensorSpec, aside: _Aside, buffer_bytes: int) -> None:
        self.spec = spec
        self._aside, self._buffer_bytes = aside, buffer_bytes
        self._row_shape = empty_rows(spec).shape[1:]
        self._buffer, self._dtype = bytearray(), np.dtype("<U1") if spec.dtype == TEXT else stored_dtype(spec)
        self._blocks: list[tuple[int, int, np.dtype[Any]]] = []

    def append(self, array: np.ndarray[Any, Any]) -> None:
        if self.spec.dtype == TEXT:
            array = self._fixed_width(array)
            if array.dtype != self._dtype:
                self._put_aside()
                self._dtype = array.dtype
        self._row_shape = array.shape[1:]
        self._buffer += np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        if len(self._buffer) >= self._buffer_bytes:
            self._put_aside()

    def _put_aside(self) -> None:
        self._blocks.append((*self._aside.put(self._buffer), self._dtype))
        self._buffer.clear()

    def _fixed_width(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        texts = texts_of(self.spec, array)
        if any(text.endswith("\0") for text in texts):
            raise RunError(
                f"writer npz: a text of {self.spec.name!r} ends in a NUL, which numpy takes for its end; use the "
                "writer parquet, arrow, jsonl or csv"
            )
        return np.array(texts, f"<U{max(map(len, texts), default=1) or 1}").reshape(array.shape)

    def store(self, file: IO[bytes], rows: int) -> None:
        self._put_aside()
        widest = max((dtype for _, _, dtype in self._blocks), key=lambda dtype: dtype.itemsize)
        header = {"descr": np.lib.format.dtype_to_descr(widest), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (rows, *self._row_shape)})
        for place, size, stored in self._blocks:
            block = np.frombuffer(self._aside.get(place, size), stored)
            file.write(block.astype(widest, copy=False).view(np.uint8).data)


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
