"""Rows of Parquet files, by row group."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import IO, Any, ClassVar

from deploykit.errors import DataError
from deploykit.sources.filetables import FileTables, arrow_file
from deploykit.sources.reading import Reading
from deploykit.sources.tablepieces import CHUNK_BYTES
from deploykit.sources.tables import TableSource
from deploykit.storage.locations import DataFile, Found
from deploykit.tensors import TensorSpec

__all__ = ["ParquetSource"]

_FEWEST_ROWS, _MOST_ROWS = 64, 65_536
_MOST_BYTES = 8 * CHUNK_BYTES
_MARK = b"PAR1"
_BORDER = re.compile(_MARK + rb"(?=PAR1)")
_SEARCHED_BYTES = 2**20
_SIGNATURE_BYTES = 28


class ParquetSource(TableSource):
    """One file or many; of each row group only the columns that are needed are read, and decoded as it goes on."""

    many: ClassVar[bool] = True

    def __init__(self, found: Found, inputs: Sequence[TensorSpec], reading: Reading) -> None:
        super().__init__(_ParquetFiles(found.text, found.files, reading), inputs, reading)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """An open file and its size, which a store would be asked for again."""

    reader: Any
    size: int


class _ParquetFiles(FileTables):
    kind = "parquet"
    advice = "not a readable Parquet file; copy or write it again"

    def _open(self, file: DataFile) -> _Opened:
        from pyarrow.parquet import ParquetFile

        handle = arrow_file(file)
        # Buffering ahead would hold a whole row group, which may be as large as the file.
        reader = ParquetFile(handle, pre_buffer=False, buffer_size=2**17, page_checksum_verification=True)
        if _is_signed(handle, reader.metadata):
            reader.close(force=True)
            raise DataError(
                f"data {file.place}: has encrypted columns, which are not read; write it without encryption"
            )
        return _Opened(reader=reader, size=handle.size())

    def _schema_of(self, opened: _Opened) -> Any:
        return opened.reader.schema_arrow

    def _pieces_of(self, file: DataFile, opened: _Opened) -> list[int]:
        metadata = opened.reader.metadata
        if _is_second(file, opened.size, metadata):
            raise DataError(
                f"data {file.place}: several Parquet files, one behind the other, of which the last would be read "
                "alone, and wrongly; give them as files of a directory, or join them with pyarrow.parquet"
            )
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def _chunks_of(self, opened: _Opened, inner: int, columns: Sequence[str]) -> Iterator[Any]:
        group = opened.reader.metadata.row_group(inner)
        parts, names = map(group.column, range(group.num_columns)), frozenset(columns)
        wanted = [part.total_uncompressed_size for part in parts if _is_of(part.path_in_schema, names)]
        row_bytes = max(1, sum(wanted) // max(1, group.num_rows))
        # A few rows together are faster, but not at any size of a row.
        few = min(_FEWEST_ROWS, _MOST_BYTES // row_bytes)
        size = min(max(CHUNK_BYTES // row_bytes, few, 1), _MOST_ROWS)
        batches: Iterator[Any] = opened.reader.iter_batches(batch_size=size, row_groups=[inner], columns=list(columns))
        return batches

    def _close(self, opened: _Opened) -> None:
        opened.reader.close(force=True)


def _is_of(path: str, columns: frozenset[str]) -> bool:
    """Whether a path in the schema begins with the name of a column, which may have dots itself."""
    return any(before in columns for before in accumulate(path.split("."), "{}.{}".format))


def _is_signed(handle: Any, metadata: Any) -> bool:
    """Whether a signature follows the metadata, as it does where columns are encrypted and the metadata are not.

    It is a nonce of 12 bytes and a tag of 16. Whatever else a writer has left there is none.

    Looking at such a column's metadata would end the process: pyarrow passes on what Python cannot catch.
    """
    handle.seek(handle.size() - 2 * len(_MARK))
    return int.from_bytes(handle.read(len(_MARK)), "little") == int(metadata.serialized_size) + _SIGNATURE_BYTES


def _is_second(file: DataFile, size: int, metadata: Any) -> bool:
    """Whether the file that the ``metadata`` at the end are of begins behind another one, in ``size`` bytes.

    They count positions from the beginning of their own. Between the data that they tell of and them there may be
    indexes, and there is the length of whatever comes before that file: so it begins no later than there is room.
    """
    footer = size - 2 * len(_MARK) - metadata.serialized_size
    room = footer - _data_end(metadata)
    if room < len(_MARK):
        return False
    with file.open() as opened:
        for start in range(0, room, _SEARCHED_BYTES):
            opened.seek(start)
            block = opened.read(_SEARCHED_BYTES + 2 * len(_MARK))
            if any(_ends_at(opened, start + match.end()) for match in _BORDER.finditer(block)):
                return True
    return False


def _data_end(metadata: Any) -> int:
    """The position behind the last column that there is, in the file of the ``metadata``."""
    if not metadata.num_row_groups:
        return len(_MARK)
    last = metadata.row_group(metadata.num_row_groups - 1)
    ends: list[int] = []
    for column in map(last.column, range(last.num_columns)):
        start = column.dictionary_page_offset or column.data_page_offset
        ends.append(start + column.total_compressed_size)
    return max(ends, default=len(_MARK))


def _ends_at(opened: IO[bytes], end: int) -> bool:
    """Whether a Parquet file ends there, and not just a text that says so: with metadata and their length."""
    import pyarrow as pa
    from pyarrow.parquet import read_metadata

    opened.seek(end - 2 * len(_MARK))
    start = end - 2 * len(_MARK) - int.from_bytes(opened.read(4), "little")
    if start < len(_MARK):
        return False
    opened.seek(start)
    try:
        read_metadata(pa.BufferReader(_MARK + opened.read(end - start)))
    except (pa.ArrowException, OSError):
        return False
    return True
