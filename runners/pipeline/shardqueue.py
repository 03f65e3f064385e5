"""Shards on their way to a pipeline: from a list, or as somebody sends them."""

import threading
from collections import deque
from collections.abc import Iterable

from deploykit.plan import Shard

__all__ = ["ShardQueue"]


class ShardQueue:
    """A feed of the shards that are put into it, until ``end`` or ``close``. Any thread may call.

    >>> queue = ShardQueue([Shard(index=0, start=0, stop=4)])
    >>> queue.end()
    >>> queue.next(), queue.next()
    (Shard(index=0, start=0, stop=4), None)
    """

    def __init__(self, shards: Iterable[Shard] = ()) -> None:
        self._shards = deque(shards)
        self._is_over = False
        # Its lock may be taken twice: a signal handler may close it in the very thread that holds it.
        self._changed = threading.Condition()

    def put(self, shard: Shard) -> None:
        """One more."""
        with self._changed:
            if not self._is_over:
                self._shards.append(shard)
            self._changed.notify_all()

    def next(self) -> Shard | None:
        """The next one; waits where there is none yet. None when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._shards or self._is_over)
            return self._shards.popleft() if self._shards else None

    def peek(self) -> Shard | None:
        """What ``next`` would give, if that is there; it stays."""
        with self._changed:
            return self._shards[0] if self._shards else None

    def end(self) -> None:
        """No more will be put; what is there is given out."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def close(self) -> None:
        """Give out nothing more."""
        with self._changed:
            self._shards.clear()
            self.end()
