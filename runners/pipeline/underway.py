"""How far the batches in work are: a batch of many draws takes minutes, and people look on."""

import threading
from collections.abc import Callable

__all__ = ["Underway"]


class Underway:
    """Tells the rows of batches as they are done. Each thread has one batch at a time."""

    def __init__(self, told: Callable[[int], None]) -> None:
        self._told, self._own, self._lock = told, threading.local(), threading.Lock()

    def begin(self, rows: int) -> None:
        """The thread has a batch of so many rows, none of which is done."""
        self._own.left = rows

    def advance(self, rows: int) -> None:
        """So many more are done; what is computed again, because it did not fit or failed, does not count twice."""
        rows = min(rows, self._own.left)
        self._own.left -= rows
        with self._lock:
            self._told(rows)

    def end(self) -> None:
        """The batch is done: its other rows are, too, or have failed."""
        self.advance(self._own.left)
