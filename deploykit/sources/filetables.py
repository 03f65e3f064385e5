"""Tables in binary files, each with a schema of its own and pieces that it lists itself: Parquet and Arrow."""

import abc
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from deploykit.errors import DataError, DeploykitError
from deploykit.sources.reading import Reading
from deploykit.sources.tablepieces import FilePieces
from deploykit.storage.locations import DataFile
from deploykit.wording import first_line

__all__ = ["FileTables", "arrow_file"]


class FileTables(FilePieces):
    """The pieces of such files. A subclass opens one file; one at a time stays open.

    Raises:
        DataError: a file that cannot be read, or whose columns are others than those of the first.
    """

    advice: ClassVar[str]
    mend = "copy or write the file again"
    is_text: bool = False

    def __init__(self, what: str, files: Sequence[DataFile], reading: Reading) -> None:
        super().__init__(what, files, reading)
        self._opened: tuple[int, Any] | None = None
        self._others: dict[int, Any] = {}
        self.schema = self._schema_of(self._file(0))
        # Where the rows are known, only the files that are read are opened.
        self.index = reading.index if self.is_known else self._counted(reading.told)
        self._where = [(number, inner) for number, rows in enumerate(self.index) for inner in range(len(rows))]
        self.rows = [rows for of_file in self.index for rows in of_file]

    def _counted(self, told: Callable[[int], object]) -> list[list[int]]:
        """The rows of each piece of each file; ``told`` is how many there are up to now."""
        index, rows = [], 0
        for number in range(len(self.files)):
            index.append(self._rows_of(number))
            rows += sum(index[-1])
            told(rows)
        return index

    @abc.abstractmethod
    def _open(self, file: DataFile) -> Any:
        """Open a file; whatever pyarrow raises is made a DataError of."""

    @abc.abstractmethod
    def _schema_of(self, opened: Any) -> Any:
        """The Arrow schema of an open file."""

    @abc.abstractmethod
    def _pieces_of(self, file: DataFile, opened: Any) -> list[int]:
        """The rows of each piece of a file, which is open; DataError where it holds more than what is found."""

    @abc.abstractmethod
    def _chunks_of(self, opened: Any, inner: int, columns: Sequence[str]) -> Iterator[Any]:
        """The rows of one piece of an open file, in chunks of these columns."""

    @abc.abstractmethod
    def _close(self, opened: Any) -> None:
        """Close an open file."""

    def select(self, columns: Sequence[str], dtypes: dict[str, str], kept: dict[str, str]) -> None:  # noqa: ARG002 (the file has types)
        """Read these columns from now on.

        Raises:
            DataError: a file that was counted has others than the first one.
        """
        self._columns = tuple(columns)
        for number, schema in self._others.items():
            self._check_columns(number, schema)
        self._others.clear()

    def chunks(self, piece: int) -> Iterator[Any]:
        """The rows of one piece."""
        number, inner = self._where[piece]
        opened = self._file(number)
        self._check_columns(number, self._schema_of(opened))
        return self._chunks_of(opened, inner, self._columns)

    def close(self) -> None:
        """Close the file that is open."""
        if self._opened is not None:
            self._close(self._opened[1])
        self._opened = None

    def _file(self, number: int) -> Any:
        if self._opened is None or self._opened[0] != number:
            self.close()
            file = self.files[number]
            try:
                self._opened = number, self._open(file)
                _ = self._schema_of(self._opened[1]).names
            except DeploykitError:
                raise
            except UnicodeDecodeError as error:
                raise DataError(
                    f"data {file.place}: the name of a column is not UTF-8, which the format demands: "
                    f"{error.object[:60]!r}; write the file again with another name"
                ) from error
            # Damage may raise nearly anything.
            except Exception as error:
                raise DataError(f"data {file.place}: {self.advice} ({first_line(error)[:300]})") from error
        return self._opened[1]

    def _rows_of(self, number: int) -> list[int]:
        opened = self._file(number)
        schema = self._schema_of(opened)
        if not schema.equals(self.schema):
            self._others[number] = schema  # Which columns must be the same is not known yet.
        return self._pieces_of(self.files[number], opened)

    def _check_columns(self, number: int, schema: Any) -> None:
        if schema.equals(self.schema):
            return
        for name in self._columns:
            have, want = _type_of(schema, name), _type_of(self.schema, name)
            if have != want:
                raise DataError(
                    f"data {self.files[number].place}: column {name!r} is {have or 'not there, or twice'}, in "
                    f"{self.files[0].place} it is {want}; the files of one data set must have the same columns"
                )


def arrow_file(file: DataFile) -> Any:
    """A file as pyarrow reads it."""
    import pyarrow as pa

    # As bytes, for a name need not be UTF-8.
    return pa.OSFile(os.fsencode(file.path)) if file.is_local else pa.PythonFile(file.open(), mode="r")


def _type_of(schema: Any, name: str) -> Any:
    """None where there is no column of that name, or where there are several."""
    places = schema.get_all_field_indices(name)
    return schema.field(places[0]).type if len(places) == 1 else None
