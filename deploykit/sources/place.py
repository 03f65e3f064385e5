"""Where values come from, for messages."""

from deploykit.errors import DataError

__all__ = ["Place"]


class Place:
    """Where values come from. ``first_row`` is the global number of the first of them."""

    def __init__(self, what: str, first_row: int) -> None:
        self.what, self.first_row = what, first_row

    def error(self, column: str, row: int, problem: str) -> DataError:
        """An error at row ``row`` of the values."""
        error = DataError(f"data {self.what}, row {self.first_row + row}, column {column!r}: {problem}")
        error.row = self.first_row + row
        return error
