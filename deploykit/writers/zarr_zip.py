"""A zarr group in one file, the zip that ``zarr.storage.ZipStore`` opens: an array for each output, in chunks."""

import zipfile
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from deploykit.errors import UnfitWriterError
from deploykit.tensors import TensorSpec, empty_rows
from deploykit.writers.base import SAMPLE_ID, TEXT, Batch, Writer, grouped, joined, of_one_shape, size_of, texts_of

__all__ = ["ZarrWriter"]

_ANY_NAME = ("parquet", "arrow", "npz")
"""Writers whose files have a column of any name."""

_CHUNK_ROWS, _CHUNK_BYTES = 65_536, 16 * 2**20
_IDS = TensorSpec(name=SAMPLE_ID, dtype="int64", shape=("batch",))


class ZarrWriter(Writer):
    """``zarr.open_group(zarr.storage.ZipStore(path))["logits.mean"]``; chunks of whole rows, not compressed.

    zarr encodes each chunk in memory, and the zip is written here: zarr's own would put the time into it.
    """

    extension: ClassVar[str] = "zarr.zip"
    needs: ClassVar[tuple[str, str] | None] = ("zarr", "zarr")

    def __init__(self, outputs: Sequence[TensorSpec]) -> None:
        super().__init__(outputs)
        names = {SAMPLE_ID, *(spec.name for spec in self.outputs)}
        for spec in self.outputs:
            # A name is a path in the group, and within an array there is none.
            if within := names & {str(parent) for parent in PurePosixPath(spec.name).parents}:
                raise UnfitWriterError(
                    f"writer zarr: {spec.name!r} would lie within the array {min(within)!r}", _ANY_NAME
                )
            if "\\" in spec.name or {"", ".", ".."} & set(spec.name.split("/")):
                raise UnfitWriterError(
                    f"writer zarr: {spec.name!r} is no name of an array, which has no backslash, and whose parts "
                    "between slashes are neither empty nor . nor ..",
                    _ANY_NAME,
                )

    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:
        """Write chunk by chunk; memory holds one chunk of each array.

        Raises:
            RunError: a batch whose dynamic dimensions have other sizes than those of the first.
        """
        batches = of_one_shape(self.outputs, batches, "zarr")
        first = next(batches, None) or Batch(
            sample_ids=np.empty(0, np.int64), outputs={spec.name: empty_rows(spec) for spec in self.outputs}
        )
        size_bytes = size_of(first.outputs) // max(len(first), 1) + 8
        chunks = -(-rows // max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // size_bytes)))
        chunk = max(1, -(-rows // max(1, chunks)))  # As equal as may be: zarr writes the last one in full, too.
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            group = _Group(archive, self.outputs, rows, chunk, first)
            start = 0
            for batch in map(joined, grouped(chain([first], batches), chunk)):
                group.write(start, batch)
                start += len(batch)

    def read(self, path: Path) -> Iterator[Batch]:
        """The rows, chunk by chunk."""
        import zarr

        with zarr.storage.ZipStore(path, mode="r") as store:
            group = zarr.open_group(store, mode="r")
            arrays: dict[str, Any] = {spec.name: group[spec.name] for spec in (_IDS, *self.outputs)}
            step = arrays[SAMPLE_ID].chunks[0]
            for start in range(0, arrays[SAMPLE_ID].shape[0], step):
                found = {name: np.asarray(array[start : start + step]) for name, array in arrays.items()}
                for spec in self.outputs:
                    if spec.dtype == TEXT:
                        found[spec.name] = found[spec.name].astype(object)
                yield Batch(sample_ids=found.pop(SAMPLE_ID), outputs=found)


class _Group:
    """Arrays of a known number of rows whose finished chunks go into the archive."""

    def __init__(
        self, archive: zipfile.ZipFile, specs: tuple[TensorSpec, ...], rows: int, chunk: int, first: Batch
    ) -> None:
        import zarr

        self._archive, self._specs = archive, specs
        self._encoded: dict[str, Any] = {}
        group = zarr.create_group(zarr.storage.MemoryStore(self._encoded))
        self._arrays = {}
        for spec in (_IDS, *specs):
            row_shape = () if spec is _IDS else first.outputs[spec.name].shape[1:]
            self._arrays[spec.name] = group.create_array(
                spec.name,
                shape=(rows, *row_shape),
                chunks=(chunk, *(max(size, 1) for size in row_shape)),
                dtype=str if spec.dtype == TEXT else spec.numpy_dtype,
                compressors=None,
                # Otherwise a chunk of zeros is left out, whatever their sign.
                config={"write_empty_chunks": True},
            )
        self._store()

    def write(self, start: int, batch: Batch) -> None:
        rows = slice(start, start + len(batch))
        self._arrays[SAMPLE_ID][rows] = batch.sample_ids
        for spec in self._specs:
            array = batch.outputs[spec.name]
            if spec.dtype == TEXT:
                texts_of(spec, array)
            self._arrays[spec.name][rows] = array
        self._store()

    def _store(self) -> None:
        for key in sorted(self._encoded):
            # A fixed date: the file depends on the predictions alone.
            self._archive.writestr(zipfile.ZipInfo(key, (1980, 1, 1, 0, 0, 0)), self._encoded.pop(key).to_bytes())
