"""Rows of CSV files, parsed by pyarrow: a header, and values between commas or what lies between the header's names."""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from deploykit.errors import DataError
from deploykit.sources.arrowtexts import NOT_UTF8
from deploykit.sources.csvvalues import (
    NULLS,
    are_values,
    column_type,
    kept_column,
    problem_with_kept,
    problem_with_number,
    typed,
)
from deploykit.sources.reading import KEPT, Reading
from deploykit.sources.tables import TableSource
from deploykit.sources.texttables import SAMPLE_BYTES, TextTables, require_text
from deploykit.storage.locations import DataFile, Found
from deploykit.storage.paths import is_utf8
from deploykit.tensors import TensorSpec
from deploykit.wording import counted

__all__ = ["CsvSource"]


class CsvSource(TableSource):
    """One file or many with the same header; a quoted value may hold line feeds."""

    many: ClassVar[bool] = True

    def __init__(self, found: Found, inputs: Sequence[TensorSpec], reading: Reading) -> None:
        super().__init__(_CsvFiles(found.text, found.files, reading), inputs, reading)


class _CsvFiles(TextTables):
    kind = "csv"
    delimiter: bytes

    def __init__(self, what: str, files: Sequence[DataFile], reading: Reading) -> None:
        # Kept for the header: of a file far away each look at its beginning is a request.
        self._first = _beginning(files[0])
        self.delimiter = _delimiter(files[0], self._first)
        super().__init__(what, files, reading)
        self._first = b""

    def _find_schema(self) -> Any:
        import pyarrow as pa

        self._header = self._header_of(self.files[0])
        # Whoever made the index has compared them.
        for file in () if self.is_known else self.files[1:]:
            if (header := self._header_of(file)) != self._header:
                raise DataError(
                    f"data {file.place}: its header is {header[:8]}, that of {self.files[0].place} {self._header[:8]}; "
                    "the files of one data set must have the same columns"
                )
        if len(self._header) == 1 and self._blank:
            self._judge_empty_lines()
        types = {name: column_type(values) for name, values in zip(self._header, self._sample(), strict=True)}
        self.hints = {name: hint for name, (_, hint) in types.items() if hint is not None}
        return pa.schema([pa.field(name, types[name][0]) for name in self._header])

    def _judge_empty_lines(self) -> None:
        """In a file of one column: among rows each may be one itself, at the end they most often are nothing."""
        for number, row in self._blank.items():
            if row < sum(rows for _, _, rows in self.index[number]):
                raise DataError(
                    f"data {self.files[number].place}, row {row}: an empty line before it, which in a file of one "
                    "column is a missing value to some writers and nothing to others; write NA for the value, or take "
                    "the line out"
                )
        places, more = self.files[min(self._blank)].place, len(self._blank) - 1
        if more:
            places += f" and {counted(more, 'more file')}"
        self.notes.append(f"empty lines at the end of {places} are no rows; write NA where a value is missing")

    def _header_of(self, file: DataFile) -> list[str]:
        header = next(filter(None, self._rows(self._first if file is self.files[0] else _beginning(file))), None)
        if header is None:
            raise DataError(f"data {file.place}: is empty; the first line must name the columns")
        names = [name.strip() for name in header]
        if are_values(names):
            raise DataError(
                f"data {file.place}: its first line is {', '.join(names[:4])[:60]} ..., numbers and no names of "
                "columns; put a line with the names before it, or the first row would be lost"
            )
        return names

    def _sample(self) -> list[list[str]]:
        """By column the values of the first rows; a ragged one is an error for those who read it."""
        columns: list[list[str]] = [[] for _ in self._header]
        if not self._where:
            return columns
        _, data = self._first_rows()
        for values in filter(None, self._rows(data)):
            if self._ragged(values) is None:
                for column, value in zip(columns, values, strict=True):
                    column.append(value)
        return columns

    def _rows(self, data: bytes, errors: str = "replace") -> Iterator[list[str]]:
        text = io.StringIO(data.decode("utf-8-sig", errors=errors), newline="")
        # A limit of the whole process, for who reads on without end; what is here is in memory already.
        csv.field_size_limit(max(csv.field_size_limit(), len(data)))
        yield from csv.reader(text, delimiter=self.delimiter.decode())

    def _ragged(self, values: Sequence[str]) -> str | None:
        if len(values) == len(self._header):
            return None
        named = counted(len(self._header), "column")
        return f"{counted(len(values), 'value')}, the header names {named}; mend the row"

    def _parse(self, data: bytes) -> Any:
        import pyarrow as pa

        table = self._table(
            data, {name: pa.string() if name in self._kept else self._dtypes[name] for name in self._columns}
        )
        kept = {f"{KEPT}{name}": kept_column(table[name], dtype) for name, dtype in self._kept.items()}
        inputs = {
            name: typed(table[name], dtype) if name in self._kept else table[name]
            for name, dtype in self._dtypes.items()
        }
        if self._is_doubtful(data, inputs) and self._problem(data) is not None:
            raise ValueError("a number that is read as another one")
        return pa.table({**inputs, **kept})

    def _table(self, data: bytes, types: Mapping[str, Any]) -> Any:
        """The columns of some whole lines, by their Arrow types."""
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        return arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=arrow_csv.ReadOptions(column_names=self._header, block_size=len(data) + 1),
            parse_options=arrow_csv.ParseOptions(delimiter=self.delimiter.decode(), newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(types), column_types=types, null_values=list(NULLS)
            ),
        )

    def _is_doubtful(self, data: bytes, inputs: Mapping[str, Any]) -> bool:
        """Whether pyarrow may have taken what is no number: it reads 1e400 as infinite, and 0x1F as 31."""
        import pyarrow as pa
        import pyarrow.compute as pc

        whole = {name: pa.string() for name, dtype in self._dtypes.items() if dtype == "int64"}
        # Other columns may well have such texts, hashes for example.
        if whole and (b"0x" in data or b"0X" in data):
            texts = self._table(data, whole)
            if any(pc.any(pc.match_substring_regex(texts[name], "0[xX]")).as_py() for name in whole):
                return True
        floats = (column for name, column in inputs.items() if self._dtypes[name] == "float64")
        return any(np.isinf(column.to_numpy()).any() for column in floats)

    def _problem(self, data: bytes) -> tuple[int, str] | None:
        places = {name: self._header.index(name) for name in self._columns}
        for row, values in enumerate(filter(None, self._rows(data, errors="surrogateescape"))):
            if ragged := self._ragged(values):
                return row, ragged
            if strange := [name for name, place in places.items() if not is_utf8(values[place])]:
                return row, f"column {strange[0]!r}: {NOT_UTF8}"
            given = {name: values[place] for name, place in places.items() if values[place] not in NULLS}
            for name, value in given.items():
                if name in self._dtypes and (problem := problem_with_number(value, self._dtypes[name])):
                    return row, f"column {name!r}: {problem}; mend the value"
                if name in self._kept and (problem := problem_with_kept(value, self._kept[name])):
                    return row, (
                        f"column {name!r}: {problem}; mend the value, give the column as text (in Parquet, say), or "
                        "leave it out of --keep"
                    )
        return None


def _beginning(file: DataFile) -> bytes:
    """About ``SAMPLE_BYTES`` from the beginning, or more where the first row is longer."""
    with file.open() as opened:
        beginning = bytes(opened.read(SAMPLE_BYTES))
        require_text(file, beginning)
        while b"\n" not in beginning and b"\r" not in beginning and (more := opened.read(len(beginning))):
            beginning += more
    return beginning


def _delimiter(file: DataFile, beginning: bytes) -> bytes:
    """What stands between the values: where the header has no comma (in ``.tsv`` no tab), another that it has."""
    first = re.sub(rb'"[^"]*"', b"", next(filter(None, beginning.splitlines()), b""))
    known = (b"\t", b",", b";", b"|") if file.extension == "tsv" else (b",", b";", b"\t", b"|")
    return next((delimiter for delimiter in known if delimiter in first), known[0])
