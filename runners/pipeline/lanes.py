"""Several threads that take work in its order, do it at the same time, and hand it on in its order."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from runners.pipeline.channel import Closed

__all__ = ["Turns"]

T = TypeVar("T")


class Turns:
    """Keeps the order: who takes first hands on first. With one thread nobody ever waits here."""

    def __init__(self) -> None:
        self._taking = threading.Lock()
        self._taken = self._done = 0
        self._closed = False
        self._next = threading.Condition()

    def take(self, get: Callable[[], T]) -> tuple[int, T]:
        """What ``get`` gives, and the turn that comes with it; threads that take meanwhile wait."""
        with self._taking:
            work = get()
            turn, self._taken = self._taken, self._taken + 1
            return turn, work

    @contextmanager
    def of(self, turn: int) -> Iterator[None]:
        """Wait until all earlier turns are over; the next one begins at the end of the block.

        Raises:
            Closed: it will not come, because an earlier one broke.
        """
        with self._next:
            self._next.wait_for(lambda: self._done == turn or self._closed)
            if self._closed:
                raise Closed
        yield
        with self._next:
            self._done += 1
            self._next.notify_all()

    def close(self) -> None:
        """Wake every thread that waits for its turn, for nothing more is wanted. A signal handler may call."""
        with self._next:
            self._closed = True
            self._next.notify_all()
