"""Rows of Arrow files (Feather) and Arrow streams, by record batch."""

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from deploykit.errors import DataError
from deploykit.sources.filetables import FileTables, arrow_file
from deploykit.sources.ipcindex import FILE_MAGIC, BatchPlace, batch_places
from deploykit.sources.reading import Reading
from deploykit.sources.tablepieces import CHUNK_BYTES
from deploykit.sources.tables import TableSource
from deploykit.storage.locations import DataFile, Found
from deploykit.tensors import TensorSpec

__all__ = ["ArrowFiles", "ArrowSource"]

_MAPPED_BYTES = 8 * CHUNK_BYTES
"""A batch of a local file that is larger is mapped piece by piece, so that memory does not hold it as a whole."""


class ArrowSource(TableSource):
    """One file or many, in the file format or the stream format, packed or not."""

    many: ClassVar[bool] = True

    def __init__(self, found: Found, inputs: Sequence[TensorSpec], reading: Reading) -> None:
        super().__init__(ArrowFiles(found.text, found.files, reading), inputs, reading)


class _Opened:
    """An open file: ``reader`` is that of the file format, None for a stream."""

    def __init__(self, file: DataFile) -> None:
        import pyarrow as pa

        self.file = file
        with file.open() as plain:
            self.is_stream = plain.read(6) != FILE_MAGIC
        self.handle = arrow_file(file)
        self.schema = pa.ipc.open_stream(self.handle).schema if self.is_stream else pa.ipc.open_file(self.handle).schema
        self._places: list[BatchPlace] | None = None
        self._reader: tuple[tuple[str, ...], Any] | None = None

    def places(self) -> list[BatchPlace]:
        if self._places is None:
            with self.file.open() as plain:
                self._places, has_dictionaries = batch_places(plain)
            if has_dictionaries and self.is_stream:
                raise DataError(
                    f"data {self.file.place}: an Arrow stream with dictionaries, which is not read by position; "
                    "write it in the file format with pyarrow.ipc.new_file"
                )
        return self._places

    def batch(self, number: int, columns: Sequence[str], handle: Any) -> Any:
        import pyarrow as pa

        if self.is_stream:
            handle.seek(self.places()[number].position)
            batch = pa.ipc.read_record_batch(pa.ipc.read_message(handle), self.schema)
            return batch.select(list(columns))
        if isinstance(handle, pa.MemoryMappedFile):
            # Given the fields to read, pyarrow would copy a batch instead of pointing into the mapping.
            return pa.ipc.open_file(handle).get_batch(number).select(list(columns))
        return self._reading(tuple(columns)).get_batch(number).select(list(columns))

    def _reading(self, columns: tuple[str, ...]) -> Any:
        """A reader of these columns. It is kept: each looks through a footer that tells of every batch."""
        import pyarrow as pa

        if self._reader is None or self._reader[0] != columns:
            every = len(columns) == len(self.schema)
            fields = None if every else [self.schema.get_field_index(name) for name in columns]
            options = pa.ipc.IpcReadOptions(included_fields=fields)
            self._reader = columns, pa.ipc.open_file(self.handle, options=options)
        return self._reader[1]


class ArrowFiles(FileTables):
    """The record batches of Arrow files."""

    kind = "arrow"
    advice = "not a readable Arrow file or stream; copy or write it again"

    def _open(self, file: DataFile) -> _Opened:
        return _Opened(file)

    def _schema_of(self, opened: _Opened) -> Any:
        return opened.schema

    def _pieces_of(self, file: DataFile, opened: _Opened) -> list[int]:
        try:
            return [place.rows for place in opened.places()]
        except (ValueError, struct.error) as error:
            raise DataError(f"data {file.place}: {self.advice} ({error})") from error

    def _chunks_of(self, opened: _Opened, inner: int, columns: Sequence[str]) -> Iterator[Any]:
        place = opened.places()[inner]
        if place.body_bytes <= _MAPPED_BYTES or not opened.file.is_local or place.is_compressed:
            yield opened.batch(inner, columns, opened.handle)
            return
        step = max(1, place.rows * CHUNK_BYTES // place.body_bytes)
        for start in range(0, place.rows, step):
            yield _mapped(opened, inner, columns).slice(start, step)

    def _close(self, opened: _Opened) -> None:
        with contextlib.suppress(OSError):
            opened.handle.close()


def _mapped(opened: _Opened, inner: int, columns: Sequence[str]) -> Any:
    """A batch in memory that is mapped anew: what was read of an older mapping is let go of with its last row."""
    import pyarrow as pa

    return opened.batch(inner, columns, pa.memory_map(os.fsencode(opened.file.path)))
