"""Tables in text files, in pieces of a few megabytes that an index of byte positions gives: CSV and JSON Lines."""

import abc
import codecs
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from deploykit.errors import DataError
from deploykit.sources.reading import Reading
from deploykit.sources.tablepieces import BadRow, FilePieces
from deploykit.sources.textindex import OpenQuoteError, TextPiece, row_bounds, text_pieces, whole_rows
from deploykit.storage.locations import DataFile
from deploykit.wording import counted

__all__ = ["SAMPLE_BYTES", "TextTables", "require_text"]

SAMPLE_BYTES = 2**20
"""How much of the beginning decides the types of the columns."""


_NO_TEXT = {
    b"\x1f\x8b": "packed with gzip: unpack it first",
    b"PK\x03\x04": "a zip archive or a sheet of Excel: unpack it first, or write it as text",
    b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it first",
    b"\xfd7zXZ": "packed with xz: unpack it first",
    b"BZh91AY": "packed with bzip2: unpack it first",
    b"PAR1": "Parquet: give it that extension, or name the source before the place, parquet:PLACE",
}
"""How files begin that are no text, though their names say so: read as text they may be a table without rows."""


class TextTables(FilePieces):
    """The pieces of such files.

    Raises:
        DataError: a file without rows where there must be some, or that cannot be understood.
    """

    mend = "mend the file"
    delimiter: bytes | None
    is_text = True

    def __init__(self, what: str, files: Sequence[DataFile], reading: Reading) -> None:
        super().__init__(what, files, reading)
        self._dtypes: dict[str, str] = {}
        self._kept: dict[str, str] = {}
        self._blank: dict[int, int] = {}  # By file, the rows before its first empty line.
        self.index = reading.index if self.is_known else self._counted(reading.told)
        self._where = [(number, piece) for number, pieces in enumerate(self.index) for piece in pieces]
        self.rows = [int(rows) for _, (_, _, rows) in self._where]
        self.schema = self._find_schema()

    def _counted(self, told: Callable[[int], object]) -> list[list[TextPiece]]:
        """The pieces of each file; ``told`` is how many rows there are up to now."""
        index, before = [], 0
        for number in range(len(self.files)):
            index.append(self._scan(number, lambda rows: told(before + rows)))  # noqa: B023 (called at once)
            before += sum(rows for _, _, rows in index[-1])
        return index

    @abc.abstractmethod
    def _find_schema(self) -> Any:
        """The Arrow schema, from the beginning of the first file."""

    @abc.abstractmethod
    def _parse(self, data: bytes) -> Any:
        """The rows of some whole lines as an Arrow table with the columns that are read."""

    @abc.abstractmethod
    def _problem(self, data: bytes) -> tuple[int, str] | None:
        """The first row, counted from the first of ``data``, that cannot be read, and why."""

    def select(self, columns: Sequence[str], dtypes: dict[str, str], kept: dict[str, str]) -> None:
        """Read these columns from now on; what is kept comes under ``KEPT`` and its name."""
        self._columns, self._kept = tuple(columns), kept
        self._dtypes = {name: _widest(dtype) for name, dtype in dtypes.items()}

    def chunks(self, piece: int) -> Iterator[Any]:
        """The rows of one piece, at once; where some are bad, those between them."""
        number, (start, stop, rows) = self._where[piece]
        yield from self._rows_of(self._between(self.files[number], start, stop), rows)

    def _rows_of(self, data: bytes, rows: int) -> Iterator[Any]:
        while data:
            try:
                yield self._parsed(data, rows)
                return
            # The errors of pyarrow, which is not imported here, are ValueErrors.
            except ValueError:
                found = self._problem(data) or self._refused(data, rows)
                if found is None:
                    raise
            start, stop = row_bounds(data, found[0], delimiter=self.delimiter)
            if found[0]:  # These may hold what the parser alone refuses.
                yield from self._rows_of(data[:start], found[0])
            yield BadRow(found[1])
            data, rows = data[stop:], rows - found[0] - 1

    def _parsed(self, data: bytes, rows: int) -> Any:
        table = self._parse(data)
        if table.num_rows != rows:
            raise ValueError(f"{counted(table.num_rows, 'row')} where {rows} should be")
        return table

    def _refused(self, data: bytes, rows: int) -> tuple[int, str] | None:
        """The same as ``_problem`` of what the parser alone finds fault with: halved until the row is alone."""
        sound = 0  # So many rows from the first on are read well together, and ``rows`` are not.
        while rows - sound > 1:
            middle = (sound + rows) // 2
            try:
                self._parsed(data[: row_bounds(data, middle - 1, delimiter=self.delimiter)[1]], middle)
                sound = middle
            except ValueError:
                rows = middle
        start, stop = row_bounds(data, sound, delimiter=self.delimiter)
        try:
            self._parsed(data[start:stop], 1)
        except ValueError as error:
            text = str(error).splitlines()[0].removesuffix(" in row 0")
            return sound, f"cannot be read ({text[:300]}); mend the line"
        return None

    def close(self) -> None:
        """Nothing stays open."""

    def _scan(self, number: int, told: Callable[[int], object]) -> list[TextPiece]:
        file = self.files[number]
        try:
            with file.open() as opened:
                require_text(file, opened.read(8))
                opened.seek(0)
                return text_pieces(
                    opened, delimiter=self.delimiter, header=self.delimiter is not None, told=told,
                    blank=lambda row: self._blank.update({number: row}),
                )  # fmt: skip
        except OSError as error:
            raise DataError(f"data {file.place}: cannot be read ({error}); check the disk or the connection") from error
        except OpenQuoteError as error:
            where = f"row {error.row - 1}" if error.row else "header"
            raise DataError(
                f"data {file.place}, {where}: {error}, so that rows would be lost in it; close the value with a quote, "
                "or take out the one that opens it (a quote within a quoted value is written twice)"
            ) from error

    def _first_rows(self) -> tuple[DataFile, bytes]:
        """The first file with rows, and its first rows, whole: about ``SAMPLE_BYTES``, or one that is longer."""
        number, (start, _, _) = self._where[0]
        stop = self.index[number][-1][1]  # The last row of a file without a line end is a piece of its own.
        size = SAMPLE_BYTES
        while True:
            data = self._between(self.files[number], start, min(stop, start + size))
            if start + size >= stop:
                return self.files[number], data
            if whole := whole_rows(data, delimiter=self.delimiter):
                return self.files[number], whole
            size *= 4

    def _between(self, file: DataFile, start: int, stop: int) -> bytes:
        try:
            with file.open() as opened:
                opened.seek(start)
                data = opened.read(stop - start)
        except OSError as error:
            raise DataError(f"data {file.place}: cannot be read ({error}); check the disk or the connection") from error
        if len(data) != stop - start:
            raise DataError(f"data {file.place}: became shorter while it was read; copy it again")
        return data


def require_text(file: DataFile, beginning: bytes) -> None:
    """Refuse what does not begin as text in UTF-8 does.

    Raises:
        DataError: says what it is, and what to do.
    """
    for magic, what in _NO_TEXT.items():
        if beginning.startswith(magic):
            raise DataError(f"data {file.place}: is no text, but {what}")
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(
            f"data {file.place}: is UTF-16, expected UTF-8; write it as UTF-8 (Excel: 'CSV UTF-8'), or convert it: "
            f"iconv -f UTF-16 -t UTF-8 {shlex.quote(file.path)} > utf8.{file.extension or 'txt'}"
        )


def _widest(dtype: str) -> str:
    """The dtype in which text is read for an input; what is narrower is checked after that."""
    return {"f": "float64", "i": "int64", "u": "int64", "b": "bool"}[np.dtype(dtype).kind]
