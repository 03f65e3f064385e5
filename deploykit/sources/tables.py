"""Rows of a table of columns: what Parquet, Arrow, CSV, JSON Lines and saved data sets share.

What was decoded last is kept, so that going on from there costs nothing twice; memory holds one chunk of a piece.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from deploykit.errors import DataError, DeploykitError, UsageError
from deploykit.sources.arrowlists import is_list, ragged_array
from deploykit.sources.arrowvalues import described_columns, input_array, kept_array, stacked
from deploykit.sources.base import Arrays
from deploykit.sources.columns import Match, match_columns, match_nothing
from deploykit.sources.place import Place
from deploykit.sources.ragged import LENGTH, fills_of, padded_together
from deploykit.sources.reading import KEPT, Reading
from deploykit.sources.tablepieces import BadRow, Pieces
from deploykit.tensors import TensorSpec, check_inputs, empty_rows
from deploykit.wording import row_range

__all__ = ["TableSource"]


class TableSource:
    """The rows of a table; one thread at a time may read.

    Of a directory every file is part of the table, so all must have an extension of the format (``only_own``).

    ``pads`` are the inputs whose rows may differ in length, with what they are filled with.

    Raises:
        DataError: the columns do not give the model's inputs.
        UsageError: an input is to be padded that cannot be.
    """

    only_own: ClassVar[bool] = True

    def __init__(self, pieces: Pieces, inputs: Sequence[TensorSpec], reading: Reading) -> None:
        self._pieces, self._inputs, self._allow_nan = pieces, tuple(inputs), reading.allow_nan
        self.notes = pieces.notes
        self.pads = fills_of(reading.pad, inputs)
        self._match = self._matched(reading)
        self._lengths = {f"{name}{LENGTH}": name for name in reading.lengths}
        batch = inputs[0].shape[0]
        lengths = (TensorSpec(name=name, dtype="int64", shape=(batch,)) for name in self._lengths)
        self.kept = (*self._match.kept, *lengths)
        self.notes += [
            f"rows of the input {name!r} are padded, and so are predictions: {told} says how much of each is its own"
            for told, name in self._lengths.items()
        ]
        dtypes = {name: spec.dtype for spec in inputs for name in self._match.inputs.get(spec.name, ())}
        pieces.select(self._match.columns, dtypes, {spec.name: spec.dtype for spec in self._match.kept})
        self.rows_together = max(pieces.rows, default=1)
        self.joins = all(isinstance(size, int) for spec in (*inputs, *self.kept) for size in spec.row_shape)
        self._ends = np.cumsum([0, *pieces.rows])
        self._cursor = _Cursor(-1, iter(()), 0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, stop: int) -> Arrays:
        """Rows ``[start, stop)``; one thread at a time."""
        if start == stop:
            return self._empty()
        parts, row = [], start
        while row < stop:
            chunk = self._chunk_at(row)
            end = min(stop, chunk.stop)
            parts.append(self._rows(chunk, row, end))
            row = end
        try:
            arrays = {key: self._joined(key, [part[key] for part in parts]) for key in parts[0]}
            check_inputs(self._inputs, {spec.name: arrays[spec.name] for spec in self._inputs}, first_row=start)
        except (DataError, ValueError) as error:
            raise DataError(f"data {self._pieces.what}, {row_range(start, stop)}: {error}") from None
        return arrays

    def file_of(self, row: int) -> str | None:
        """The file of a row, where there are several."""
        piece = int(np.searchsorted(self._ends, row, side="right")) - 1
        names = [self._pieces.name(number) for number in (0, piece, len(self._pieces.rows) - 1)]
        return names[1] if names[0] != names[2] else None

    def fingerprint(self) -> dict[str, Any]:
        """Rows, the columns that are read, and a sample of the files."""
        read = {name: list(columns) for name, columns in self._match.inputs.items()}
        content: dict[str, Any] = {"rows": len(self), "columns": read}
        if self._lengths:  # They are columns of the predictions, too.
            content["lengths"] = list(self._lengths.values())
        return {"kind": self._pieces.kind, **content, **self._pieces.identity.values()}

    def is_unchanged(self) -> bool:
        """Whether no file was written to since its rows were counted, or the fingerprint taken; not of URLs."""
        return self._pieces.identity.holds()

    def index(self) -> Any:
        """What makes the next opening cheap; None where it is cheap anyway."""
        return self._pieces.index

    def close(self) -> None:
        """Let go of files and of what was decoded."""
        self._cursor = _Cursor(-1, iter(()), 0)
        self._pieces.close()

    def _chunk_at(self, row: int) -> "_Cursor":
        """The cursor, moved to the chunk that holds the row."""
        piece = int(np.searchsorted(self._ends, row, side="right")) - 1
        cursor = self._cursor
        if piece != cursor.piece or row < cursor.start:
            cursor = self._cursor = _Cursor(piece, self._pieces.chunks(piece), int(self._ends[piece]))
        while row >= cursor.stop:
            self._advance(cursor)
        return cursor

    def _rows(self, cursor: "_Cursor", start: int, stop: int) -> Arrays:
        """Rows of the cursor's chunk. A row that does not fit is an error for those alone who ask for it."""
        rows = slice(start - cursor.start, stop - cursor.start)
        if cursor.arrays is None and not cursor.is_bad:
            try:
                cursor.arrays = self._converted(cursor.chunk, self._place(cursor, cursor.start))
            except DataError:
                cursor.is_bad = True
        if cursor.arrays is None:
            return self._converted(_sliced(cursor.chunk, rows.start, stop - start), self._place(cursor, start))
        return {key: array[rows] for key, array in cursor.arrays.items()}

    def _advance(self, cursor: "_Cursor") -> None:
        end = int(self._ends[cursor.piece + 1])
        try:
            chunk = next(cursor.chunks, None)
            count = 0 if chunk is None else chunk.num_rows
            if chunk is None or cursor.stop + count > end:
                raise ValueError(f"it has other rows than it promised, up to row {cursor.stop + count} of {end}")
            cursor.start, cursor.stop, cursor.chunk = cursor.stop, cursor.stop + count, chunk
            cursor.arrays, cursor.is_bad = None, False
        # pyarrow raises OSError, its own errors and plain ones, whatever the damage meets first.
        except Exception as error:
            # What was begun cannot be gone on with; the next read begins the piece again.
            self._cursor = _Cursor(-1, iter(()), 0)
            if isinstance(error, DeploykitError):
                raise
            raise self._pieces.explain(cursor.piece, int(self._ends[cursor.piece]), error) from error

    def _place(self, cursor: "_Cursor", first_row: int) -> Place:
        return Place(self._pieces.name(cursor.piece), first_row)

    def _converted(self, chunk: Any, place: Place) -> Arrays:
        if isinstance(chunk, BadRow):
            error = DataError(f"data {place.what}, row {place.first_row}: {chunk.problem}")
            error.row = place.first_row
            raise error
        columns = {name: _one(chunk.column(name)) for name in chunk.schema.names}
        arrays: dict[str, Any] = {}
        for spec in self._inputs:
            names = self._match.inputs[spec.name]
            if spec.name in self.pads:
                arrays[spec.name] = ragged_array(
                    columns[names[0]], spec, names[0], place, self.pads[spec.name], allow_nan=self._allow_nan
                )
                continue
            if len(names) == 1 and not _is_scalar_of_vector(columns[names[0]], spec):
                arrays[spec.name] = input_array(columns[names[0]], spec, names[0], place, allow_nan=self._allow_nan)
                continue
            one = TensorSpec(name=spec.name, dtype=spec.dtype, shape=spec.shape[:1])
            values = [input_array(columns[n], one, n, place, allow_nan=self._allow_nan) for n in names]
            arrays[spec.name] = stacked(values, spec.dtype)
        self._refuse_other_lengths(arrays, place)
        lengths = {f"{KEPT}{told}": np.diff(arrays[name].ends) for told, name in self._lengths.items()}
        for spec in self._match.kept:
            key = f"{KEPT}{spec.name}"
            arrays[key] = kept_array(columns[key if key in columns else spec.name], spec, place)
        return arrays | lengths

    def _refuse_other_lengths(self, arrays: Mapping[str, Any], place: Place) -> None:
        """Refuse rows of which two inputs with the same dimension have lists of different lengths."""
        first: dict[int | str, TensorSpec] = {}
        for spec in (spec for spec in self._inputs if spec.name in self.pads):
            other = first.setdefault(spec.row_shape[0], spec)
            lengths, wanted = (np.diff(arrays[each.name].ends) for each in (spec, other))
            rows = np.flatnonzero(lengths != wanted)
            if len(rows) and isinstance(spec.row_shape[0], str):
                row = int(rows[0])
                problem = (
                    f"{lengths[row]} values, and input {other.name!r} of this row has {wanted[row]}; mend the data"
                )
                raise place.error(self._match.inputs[spec.name][0], row, problem)

    def _joined(self, key: str, parts: list[Any]) -> np.ndarray[Any, Any]:
        """A fresh array; ValueError where a dynamic dimension differs."""
        if key in self.pads:
            return padded_together([part.padded() for part in parts], self.pads[key])
        return np.concatenate(parts) if len(parts) > 1 else parts[0].copy(order="C")

    def _matched(self, reading: Reading) -> Match:
        pieces = self._pieces
        if pieces.is_text and not any(pieces.rows):
            return match_nothing(self._inputs, reading, self.notes)
        columns = described_columns(pieces.schema, pieces.hints)
        match = match_columns(pieces.what, columns, self._inputs, reading, self.notes, text=pieces.is_text)
        self._refuse_single_values(match)
        return match

    def _refuse_single_values(self, match: Match) -> None:
        """Refuse to pad what is no list."""
        schema = self._pieces.schema
        for name in self.pads:
            columns = match.inputs[name]
            if len(columns) > 1 or not is_list(schema.field(columns[0]).type):
                raise UsageError(
                    f"data {self._pieces.what}: --pad {name}: {', '.join(columns[:4])} holds single values and no "
                    "lists, which alone have a length; leave it out"
                )

    def _empty(self) -> Arrays:
        kept = {f"{KEPT}{spec.name}": empty_rows(spec) for spec in self.kept}
        return {spec.name: empty_rows(spec) for spec in self._inputs} | kept


class _Cursor:
    """Where the reading of a piece is: ``chunk`` has the rows ``[start, stop)``, ``arrays`` what was made of them."""

    def __init__(self, piece: int, chunks: Iterator[Any], row: int) -> None:
        self.piece, self.chunks = piece, chunks
        self.start = self.stop = row
        self.chunk: Any = None
        self.arrays: Arrays | None = None
        self.is_bad = False


def _one(column: Any) -> Any:
    """A column of a table in one array."""
    if not hasattr(column, "chunks"):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _sliced(chunk: Any, start: int, rows: int) -> Any:
    return chunk if isinstance(chunk, BadRow) else chunk.slice(start, rows)


def _is_scalar_of_vector(column: Any, spec: TensorSpec) -> bool:
    import pyarrow as pa

    return len(spec.row_shape) == 1 and not pa.types.is_nested(column.type) and not hasattr(column, "storage")
