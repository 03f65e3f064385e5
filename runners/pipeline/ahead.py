"""Which rows are read next: several batches at once where that saves time, and, over the ends of the shards, what a
source that reads ahead is told.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from deploykit.plan import Plan, Shard
from deploykit.sources.reading import uncut

if TYPE_CHECKING:
    from deploykit.sources import Source

__all__ = ["Ahead", "joined"]

Ranges = list[tuple[int, int]]


class Ahead:
    """The pieces of each shard that can be read at once.

    Near the end of a shard the next one is announced too, if it is known: otherwise the source's readers would be idle
    while the last batches of the one are taken, and start anew for the other.

    Args:
        source: one that reads ahead has ``expect``, and ``depth``, how many pieces it reads at the same time.
        plan: the job's.
        peek: the shard after this one, if it is known.
    """

    def __init__(self, source: "Source", plan: Plan, peek: Callable[[], Shard | None]) -> None:
        self._source, self._plan, self._peek = source, plan, peek
        self._depth = int(getattr(source, "depth", 0))
        self._announced: tuple[Shard, Ranges] | None = None

    def ranges(self, shard: Shard) -> Iterator[tuple[int, int]]:
        """The pieces of the shard, in order; each is read before the next one is asked for."""
        if self._announced is not None and self._announced[0] == shard:
            ranges, self._announced = self._announced[1], None
        else:
            ranges = self._announce(shard)
        for number, piece in enumerate(ranges):
            if self._announced is None and len(ranges) - number <= self._depth:
                following = self._peek()
                if following is not None:
                    self._announced = following, self._announce(following)
            yield piece

    def _announce(self, shard: Shard) -> Ranges:
        ranges = [piece for start, stop in self._plan.batches(shard) for piece in uncut(self._source, start, stop)]
        expect = getattr(self._source, "expect", None)
        if expect is not None:
            expect(ranges)
        return ranges


def joined(pieces: Iterable[tuple[int, int]], most: Callable[[], int]) -> Iterator[tuple[int, int]]:
    """Neighbouring pieces as one, as long as it has at most so many rows as ``most`` allows by then.

    >>> list(joined([(0, 4), (4, 8), (8, 12), (12, 13)], lambda: 9))
    [(0, 8), (8, 13)]
    """
    begun: tuple[int, int] | None = None
    for start, stop in pieces:
        if begun is not None and stop - begun[0] <= most():
            begun = begun[0], stop
            continue
        if begun is not None:
            yield begun
        begun = start, stop
    if begun is not None:
        yield begun
