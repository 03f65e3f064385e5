"""CSV: one number or text per cell, so a vector takes a column for each element."""

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from deploykit.errors import UnfitWriterError
from deploykit.tensors import TensorSpec
from deploykit.writers.arrowdata import batches_from, column_of, schema_of
from deploykit.writers.base import SAMPLE_ID, TEXT, Arrays, Batch, Writer, checked, pieces_of_text

__all__ = ["CsvWriter"]

MOST_COLUMNS = 16_384
_BLOCK_BYTES = 4 * 2**20


class CsvWriter(Writer):
    """A header, then a line for each row: ``sample_id``, scalars under their names, vectors as ``name.0``, ``name.1``.

    Numbers are the shortest text that reads back as the same number; ``nan``, ``inf`` and ``-inf`` as they are.

    Raises:
        UsageError: an output with a dynamic dimension, more columns than 16,384, or two of one name.
    """

    extension: ClassVar[str] = "csv"
    needs: ClassVar[tuple[str, str] | None] = ("pyarrow", "parquet")

    def __init__(self, outputs: Sequence[TensorSpec]) -> None:
        super().__init__(outputs)
        _refuse_unfit(self.outputs)
        self._cells = [cell for spec in self.outputs for cell in _cells(spec)]
        names = [SAMPLE_ID, *(cell.name for cell in self._cells)]
        clash = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if clash:
            raise UnfitWriterError(f"writer csv: {clash} would be the names of two columns", ["parquet", "jsonl"])

    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:  # noqa: ARG002 (the batches say it)
        """Write block by block; memory holds one batch and what becomes of 2 MiB of it as text."""
        import pyarrow as pa
        from pyarrow.csv import CSVWriter as File

        schema = schema_of(self._cells)
        with path.open("wb") as raw, File(raw, schema) as file:
            for batch in pieces_of_text(batches):
                arrays = [batch.sample_ids, *self._split(checked(self.outputs, batch).outputs)]
                columns = list(map(column_of, arrays, schema.types))
                file.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))

    def read(self, path: Path) -> Iterator[Batch]:
        """The rows in blocks of about 4 MiB of text, or of one row that is longer."""
        from pyarrow import csv

        schema = schema_of(self._cells)
        convert = csv.ConvertOptions(
            column_types=schema, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
        )
        parse = csv.ParseOptions(newlines_in_values=True)
        names: list[str] = []  # The first block has a header.
        with path.open("rb") as file:
            for block in _blocks(file):
                read = csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=names)
                table = csv.read_csv(io.BytesIO(block), read_options=read, parse_options=parse, convert_options=convert)
                names = table.column_names
                for batch in batches_from(self._cells, table.to_batches()):
                    yield Batch(sample_ids=batch.sample_ids, outputs=self._joined(batch.outputs, len(batch)))

    def _split(self, outputs: Arrays) -> Iterator[np.ndarray[Any, Any]]:
        for spec in self.outputs:
            array = outputs[spec.name].reshape(len(outputs[spec.name]), -1)
            # Half precision is written through single precision, which holds it exactly.
            yield from np.ascontiguousarray(array.T, np.float32 if spec.dtype == "float16" else None)

    def _joined(self, cells: Arrays, rows: int) -> Arrays:
        outputs: Arrays = {}
        for spec in self.outputs:
            columns = [cells[cell.name] for cell in _cells(spec)]
            dtype = object if spec.dtype == TEXT else spec.numpy_dtype
            # An output of no numbers has no column.
            table = np.stack(columns, axis=1) if columns else np.empty((rows, 0))
            outputs[spec.name] = table.astype(dtype, copy=False).reshape(rows, *map(int, spec.row_shape))
        return outputs


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    """The text of whole rows; each ends with a line feed, which within a text stands between quotes."""
    rest = b""
    # A long row is looked through again with what follows; twice as much each time keeps that linear.
    while data := file.read(max(_BLOCK_BYTES, len(rest))):
        block = rest + data
        values = np.frombuffer(block, np.uint8)
        ends, quotes = np.flatnonzero(values == ord("\n")), np.flatnonzero(values == ord('"'))
        # The block begins outside of quotes; after an odd number of them a line end is within.
        ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
        stop = int(ends[-1]) + 1 if len(ends) else 0
        if stop:
            yield block[:stop]
        rest = block[stop:]
    if rest:
        yield rest


def _refuse_unfit(specs: Sequence[TensorSpec]) -> None:
    for spec in specs:
        if any(isinstance(size, str) for size in spec.row_shape):
            raise UnfitWriterError(
                f"writer csv: {spec} has rows of any size, and a table has the same columns in every row",
                ["jsonl", "parquet", "arrow", "pt"],
            )
    columns = sum(math.prod(int(size) for size in spec.row_shape) for spec in specs)
    if columns > MOST_COLUMNS:
        raise UnfitWriterError(
            f"writer csv: {columns} columns, one for each element of a row; at most {MOST_COLUMNS} are allowed",
            ["jsonl", "parquet", "arrow", "zarr"],
        )


def _cells(spec: TensorSpec) -> Iterator[TensorSpec]:
    """The columns of an output, each a scalar."""
    dtype = "float32" if spec.dtype == "float16" else spec.dtype
    for index in np.ndindex(*(int(size) for size in spec.row_shape)):
        yield TensorSpec(name=".".join([spec.name, *map(str, index)]), dtype=dtype, shape=spec.shape[:1])
