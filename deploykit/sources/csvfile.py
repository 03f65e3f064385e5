"""Rows of CSV files: a header, and values between commas (tabs in ``.tsv``), parsed by pyarrow."""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from deploykit.errors import DataError
from deploykit.locations import DataFile, Found
from deploykit.sources.reading import Reading
from deploykit.sources.tables import TableSource
from deploykit.sources.textindex import whole_rows
from deploykit.sources.texttables import SAMPLE_BYTES, TextTables, problem_with_number
from deploykit.tensors import TensorSpec

__all__ = ["CsvSource"]

_NULLS = ("", "#N/A", "#N/A N/A", "#NA", "N/A", "NA", "NULL", "NaN", "n/a", "nan", "null", "None")


class CsvSource(TableSource):
    """One file or many with the same header; a quoted value may hold line feeds."""

    many: ClassVar[bool] = True

    def __init__(self, found: Found, inputs: Sequence[TensorSpec], reading: Reading) -> None:
        super().__init__(_CsvFiles(found.text, found.files, reading.index), inputs, reading)


class _CsvFiles(TextTables):
    kind = "csv"

    def __init__(self, what: str, files: Sequence[DataFile], index: Any) -> None:
        self._delimiter = "\t" if files[0].extension == "tsv" else ","
        self.delimiter = self._delimiter.encode()
        super().__init__(what, files, index)

    def _find_schema(self) -> Any:
        import pyarrow as pa

        self._header = self._header_of(self.files[0])
        for file in self.files[1:]:
            if (header := self._header_of(file)) != self._header:
                raise DataError(
                    f"data {file.name}: its header is {header[:8]}, that of {self.files[0].name} {self._header[:8]}; "
                    "the files of one data set must have the same columns"
                )
        fields, hints = [], {}
        for name, values in zip(self._header, self._sample(), strict=True):
            kind, hint = _type_of(values)
            fields.append(pa.field(name, kind))
            if hint is not None:
                hints[name] = hint
        self.hints = hints
        return pa.schema(fields)

    def _header_of(self, file: DataFile) -> list[str]:
        with file.open() as opened:
            data = opened.read(SAMPLE_BYTES)
        header = next(filter(None, self._rows(data)), None)
        if header is None:
            raise DataError(f"data {file.name}: is empty; the first line must name the columns")
        return [name.strip() for name in header]

    def _sample(self) -> list[list[str]]:
        """By column the values of the first rows."""
        columns: list[list[str]] = [[] for _ in self._header]
        if not self._where:
            return columns
        number, (start, stop, _) = self._where[0]
        data = self._between(self.files[number], start, min(stop, start + SAMPLE_BYTES))
        if start + SAMPLE_BYTES < stop:
            data = whole_rows(data, delimiter=self.delimiter)
        for row, values in enumerate(filter(None, self._rows(data))):
            if problem := self._ragged(values):
                raise DataError(f"data {self.files[number].name}, row {row}: {problem}")
            for column, value in zip(columns, values, strict=True):
                column.append(value)
        return columns

    def _rows(self, data: bytes) -> Iterator[list[str]]:
        text = io.StringIO(data.decode("utf-8-sig", errors="replace"), newline="")
        return csv.reader(text, delimiter=self._delimiter)

    def _ragged(self, values: Sequence[str]) -> str | None:
        if len(values) == len(self._header):
            return None
        return f"{len(values)} values, the header names {len(self._header)} columns; mend the row"

    def _parse(self, data: bytes) -> Any:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        types = {name: self._dtypes.get(name) or self.schema.field(name).type for name in self._columns}
        return arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=arrow_csv.ReadOptions(column_names=self._header, block_size=len(data) + 1),
            parse_options=arrow_csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(self._columns), column_types=types, null_values=list(_NULLS)
            ),
        )

    def _problem(self, data: bytes) -> tuple[int, str] | None:
        types = {name: self._dtypes.get(name) or str(self.schema.field(name).type) for name in self._columns}
        checked = [
            (self._header.index(name), name, {"double": "float64"}.get(kind, kind))
            for name, kind in types.items()
            if kind != "string"
        ]
        for row, values in enumerate(filter(None, self._rows(data))):
            if ragged := self._ragged(values):
                return row, ragged
            for place, name, kind in checked:
                problem = None if values[place] in _NULLS else problem_with_number(values[place], kind)
                if problem is not None:
                    return row, f"column {name!r}: {problem}; mend the value"
        return None


def _type_of(values: Sequence[str]) -> tuple[Any, str | None]:
    """The Arrow type of a column, and where the first value is that is no number."""
    import pyarrow as pa

    given = [(row, value) for row, value in enumerate(values) if value not in _NULLS]
    if given and all(value.lower() in ("true", "false") for _, value in given):
        return pa.bool_(), None
    if not any(problem_with_number(value, "int64") for _, value in given):
        return (pa.int64() if given else pa.float64()), None
    text = next(((row, value) for row, value in given if problem_with_number(value, "float64")), None)
    return (pa.float64(), None) if text is None else (pa.string(), f"row {text[0]}: {text[1][:30]!r}")
