"""Apache Parquet, for pandas, polars, DuckDB, Spark and any warehouse."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from deploykit.tensors import TensorSpec
from deploykit.writers.arrowdata import GROUP_ROWS, batches_from, schema_of, tables_of
from deploykit.writers.base import SAMPLE_ID, TEXT, Batch, Writer

__all__ = ["ParquetWriter"]


class ParquetWriter(Writer):
    """A column for each output: a scalar as such, a vector or more as list; row groups of at most 65,536 rows.

    Floats are stored plain: predictions hardly ever repeat, so that a dictionary takes four times as long and makes the
    file larger, and zstd takes a third longer for a tenth of the size (``benchmarks/writers.py``). Integers are
    stored as differences, which takes no time and leaves nearly nothing of the sample ids; text gets a dictionary.
    """

    extension: ClassVar[str] = "parquet"
    needs: ClassVar[tuple[str, str] | None] = ("pyarrow", "parquet")

    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:  # noqa: ARG002 (the batches say it)
        """Write row group by row group; memory holds one."""
        from pyarrow.parquet import ParquetWriter as File

        texts = [_path(spec) for spec in self.outputs if spec.dtype == TEXT]
        integers = [SAMPLE_ID, *(_path(spec) for spec in self.outputs if "int" in spec.dtype)]
        # Opened here: pyarrow takes no path that is not UTF-8.
        with (
            path.open("wb") as raw,
            File(
                raw,
                schema_of(self.outputs),
                use_dictionary=texts or False,
                compression=dict.fromkeys(texts, "ZSTD") or "NONE",
                column_encoding=dict.fromkeys(integers, "DELTA_BINARY_PACKED"),
                write_statistics=[SAMPLE_ID],
            ) as file,
        ):
            for table in tables_of(self.outputs, batches):
                file.write_table(table, row_group_size=GROUP_ROWS)

    def read(self, path: Path) -> Iterator[Batch]:
        """The rows, row group by row group."""
        from pyarrow.parquet import ParquetFile as File

        with path.open("rb") as raw, File(raw, pre_buffer=False) as file:
            for index in range(file.num_row_groups):
                yield from batches_from(self.outputs, file.read_row_group(index, use_threads=False).to_batches())


def _path(spec: TensorSpec) -> str:
    """What Parquet calls the column that holds the elements."""
    return spec.name + ".list.element" * len(spec.row_shape)
