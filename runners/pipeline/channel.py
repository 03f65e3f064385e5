"""A bounded queue between two threads that can be finished by its producer and abandoned by anyone."""

import threading
from collections import deque
from time import perf_counter
from typing import Generic, TypeVar

__all__ = ["Channel", "Closed"]

T = TypeVar("T")

FEWEST = 2
"""So many items fit whatever their size: fewer would not let the two sides overlap."""


class Closed(Exception):  # noqa: N818 - not an error: how a channel ends
    """Nothing more comes, or nothing more is wanted."""


class Channel(Generic[T]):
    """Holds at most ``items`` items of about ``size_bytes`` together, between one producer and one consumer at a time.

    ``queue.Queue`` cannot wake a waiting thread to tell it that the other side is gone, and wakes a thread for every
    single item; this wakes the producer when it is half empty, and an item may wait for the next one.

    Attributes:
        put_wait_s: seconds that the producer waited for room.
        get_wait_s: seconds that the consumer waited for an item.
    """

    def __init__(self, items: int, size_bytes: int) -> None:
        self.put_wait_s = self.get_wait_s = 0.0
        self._most, self._most_bytes = items, size_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        # A signal handler may abandon in the very thread that holds the lock.
        self._lock = threading.RLock()
        self._arrived, self._room = threading.Condition(self._lock), threading.Condition(self._lock)
        self._finished = self._abandoned = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, size_bytes: int, *, urgent: bool = True) -> None:
        """Add an item; one that is not urgent does not wake the consumer before half of the channel is full.

        Raises:
            Closed: the channel was abandoned or finished.
        """
        with self._lock:
            if self._is_full() and not self._abandoned:
                start = perf_counter()
                self._arrived.notify()
                self._room.wait_for(lambda: self._is_half_empty() or self._abandoned)
                self.put_wait_s += perf_counter() - start
            if self._abandoned or self._finished:
                raise Closed
            self._items.append((item, size_bytes))
            self._bytes += size_bytes
            if urgent or not self._is_half_empty():
                self._arrived.notify()

    def get(self) -> T:
        """Take the oldest item.

        Raises:
            Closed: the channel was abandoned, or is finished and empty.
        """
        with self._lock:
            if not self._items and not (self._finished or self._abandoned):
                start = perf_counter()
                self._arrived.wait_for(lambda: self._items or self._finished or self._abandoned)
                self.get_wait_s += perf_counter() - start
            if self._abandoned or not self._items:
                raise Closed
            item, size_bytes = self._items.popleft()
            self._bytes -= size_bytes
            if self._is_half_empty():
                self._room.notify()
            return item

    def finish(self) -> None:
        """No more items will be put; those inside are still given out."""
        with self._lock:
            self._finished = True
            self._arrived.notify_all()

    def abandon(self) -> None:
        """Throw away what is inside and wake every waiting thread."""
        with self._lock:
            self._abandoned = True
            self._items.clear()
            self._arrived.notify_all()
            self._room.notify_all()

    def _is_full(self) -> bool:
        count = len(self._items)
        return count >= self._most or (count >= FEWEST and self._bytes >= self._most_bytes)

    def _is_half_empty(self) -> bool:
        count = len(self._items)
        return count < FEWEST or (count <= self._most // 2 and self._bytes <= self._most_bytes // 2)
