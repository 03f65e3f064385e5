"""What a format of tables gives: pieces whose row counts are known, and that are read from their beginning."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from deploykit.errors import DataError, MissingExtraError
from deploykit.sources.base import FileIdentity

__all__ = ["CHUNK_BYTES", "BadRow", "Pieces", "require_pyarrow"]

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


def require_pyarrow(what: str) -> None:
    """Refuse what needs pyarrow where it is not installed.

    Raises:
        MissingExtraError: it is not.
    """
    import importlib.util

    if importlib.util.find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "parquet", f"reading {what}")
