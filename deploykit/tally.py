"""How much of a long look through a run is done, for whoever shows it to people."""

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

__all__ = ["Tally", "Told"]

Told = Callable[[int, int], object]
"""Is called with the rows that are done and with all rows."""

T = TypeVar("T", bound=Sized)


class Tally:
    """Adds up the rows of ``passes`` passes over a run as one.

    >>> tally = Tally(print, 100, passes=2)
    >>> tally.add(100.0)
    50 100
    """

    def __init__(self, told: Told | None, rows: int, *, passes: int = 1) -> None:
        self._told, self._rows, self._passes = told, rows, passes
        self._done = 0.0

    def add(self, rows: float) -> None:
        """So many more, or a share of one: part of a file."""
        self._done += rows
        if self._told is not None:
            # Shares do not add up to whole rows exactly.
            self._told(min(self._rows, int(self._done / self._passes + 0.001)), self._rows)

    def of_batches(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the rows of each are done when the next one is asked for."""
        for batch in batches:
            yield batch
            self.add(len(batch))

    def of_bytes(self, rows: int, size_bytes: int) -> Callable[[int], None]:
        """The same for a file of ``rows`` rows, told of each piece of its bytes."""
        return lambda count: self.add(rows * count / max(1, size_bytes))
