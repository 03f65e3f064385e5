"""What a format of tables gives: pieces whose row counts are known, and that are read from their beginning."""

import abc
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from deploykit.errors import DataError, MissingExtraError
from deploykit.sources.base import FileIdentity
from deploykit.sources.reading import Reading
from deploykit.storage.locations import DataFile
from deploykit.wording import first_line, row_range

__all__ = ["CHUNK_BYTES", "BadRow", "FilePieces", "Pieces", "require_pyarrow"]

CHUNK_BYTES = 8 * 2**20
"""About how much is decoded at a time."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A chunk of one row that cannot be read, among others that can: an error only for who asks for it."""

    problem: str
    num_rows: int = 1


class Pieces(Protocol):
    """A table in pieces.

    Attributes:
        kind: the kind of source.
        what: the data as the user named it.
        identity: that of all files; looked at before their rows were counted, if they were.
        schema: an Arrow schema.
        rows: the rows of each piece.
        is_text: whether numbers are written as text.
        index: JSON values from which the pieces are known without looking for them again; None where that is cheap.
        notes: for people to read.
        hints: of columns of text, where the first value is that makes them so; of columns of numbers that are kept as
            text, where the first is that a number would change.
    """

    kind: str
    what: str
    identity: FileIdentity
    schema: Any
    rows: Sequence[int]
    is_text: bool
    index: Any
    notes: list[str]
    hints: Mapping[str, str]

    def select(self, columns: Sequence[str], dtypes: dict[str, str], kept: dict[str, str]) -> None:
        """Read these columns from now on; ``dtypes`` are those of the inputs that they go to, ``kept`` those to keep.

        A chunk may have what is kept under ``KEPT`` and its name, where it is another value than the input's.
        """
        ...

    def chunks(self, piece: int) -> Iterator[Any]:
        """The rows of one piece, as record batches, tables of any size, or single bad rows.

        Raises:
            Exception: whatever pyarrow raises where the piece cannot be read.
        """
        ...

    def name(self, piece: int) -> str:
        """The file of a piece, as an error names it."""
        ...

    def explain(self, piece: int, first_row: int, error: Exception) -> DataError:
        """A better text for an error of ``chunks``."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


class FilePieces(abc.ABC):
    """What the ``Pieces`` of files in their order have in common. A subclass finds the pieces, and reads them.

    Attributes:
        mend: what is to be done about a file that cannot be read.
        is_known: whether the caller knows the rows of all files, so that they are not looked for again.
    """

    kind: str
    mend: ClassVar[str]
    rows: Sequence[int]
    hints: Mapping[str, str]
    _where: Sequence[tuple[int, Any]]
    """By piece, the number of its file and its place in that."""

    def __init__(self, what: str, files: Sequence[DataFile], reading: Reading) -> None:
        require_pyarrow(what)
        self.what, self.files, self.hints = what, tuple(files), {}
        self.identity = FileIdentity(self.files)
        self.notes: list[str] = []
        self._columns: tuple[str, ...] = ()
        self.is_known = isinstance(reading.index, list) and len(reading.index) == len(self.files)
        if not self.is_known:
            self.identity.values()  # What is written from now on is not counted, or counted wrongly.

    def name(self, piece: int) -> str:
        """The file of a piece."""
        return self.files[self._where[piece][0]].place

    def explain(self, piece: int, first_row: int, error: Exception) -> DataError:
        """The error, with the file and the rows."""
        rows = row_range(first_row, first_row + self.rows[piece])
        why = first_line(error)[:300]
        return DataError(f"data {self.name(piece)}, {rows}: cannot be read ({why}); {self.mend}")


def require_pyarrow(what: str) -> None:
    """Refuse what needs pyarrow where it is not installed.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "parquet", f"reading {what}")
