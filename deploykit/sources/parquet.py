"""Rows of Parquet files, by row group."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from deploykit.locations import DataFile, Found
from deploykit.sources.filetables import FileTables, arrow_file
from deploykit.sources.reading import Reading
from deploykit.sources.tables import CHUNK_BYTES, TableSource
from deploykit.tensors import TensorSpec

__all__ = ["ParquetSource"]

_FEWEST_ROWS, _MOST_ROWS = 64, 65_536


class ParquetSource(TableSource):
    """One file or many; of each row group only the columns that are needed are read, and decoded as it goes on."""

    many: ClassVar[bool] = True

    def __init__(self, found: Found, inputs: Sequence[TensorSpec], reading: Reading) -> None:
        super().__init__(_ParquetFiles(found.text, found.files, reading.index), inputs, reading)


class _ParquetFiles(FileTables):
    kind = "parquet"
    advice = "not a readable Parquet file; copy or write it again"

    def _open(self, file: DataFile) -> Any:
        from pyarrow.parquet import ParquetFile

        # Buffering ahead would hold a whole row group, which may be as large as the file.
        return ParquetFile(arrow_file(file), pre_buffer=False, buffer_size=2**17)

    def _schema_of(self, opened: Any) -> Any:
        return opened.schema_arrow

    def _pieces_of(self, opened: Any) -> list[int]:
        metadata = opened.metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]

    def _chunks_of(self, opened: Any, inner: int, columns: Sequence[str]) -> Iterator[Any]:
        group = opened.metadata.row_group(inner)
        wanted = [
            group.column(number).total_uncompressed_size
            for number in range(group.num_columns)
            if group.column(number).path_in_schema.partition(".")[0] in columns
        ]
        row_bytes = max(1, sum(wanted) // max(1, group.num_rows))
        size = min(max(CHUNK_BYTES // row_bytes, _FEWEST_ROWS), _MOST_ROWS)
        batches: Iterator[Any] = opened.iter_batches(batch_size=size, row_groups=[inner], columns=list(columns))
        return batches

    def _close(self, opened: Any) -> None:
        opened.close(force=True)
