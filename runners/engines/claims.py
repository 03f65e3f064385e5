"""Which shards a rank takes that a launcher has started: a fixed share, or the next one that nobody has taken."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from deploykit.plan import Shard
from deploykit.runs.commit import FileDigest
from deploykit.runs.rundir import RunDirectory
from deploykit.storage.stores import AT_ONCE
from runners.store import Group, LauncherStore

__all__ = ["Claims", "counted", "share"]

KEY = "next-shard"


class Claims:
    """A feed of the shards with these numbers, less those whose part is there and whole.

    What is there is looked up once, at the start: two ranks never take the same number, so whatever other ranks add
    later is none of this rank's.

    Args:
        numbers: of the shards.
        directory: that of the job.
        bring: has these files of it whole, see ``Exchange``.

    Attributes:
        taken: numbers of the shards that were given out.
    """

    def __init__(
        self, numbers: Iterator[int], directory: RunDirectory, bring: Callable[[list[str]], object] = lambda _: None
    ) -> None:
        self._numbers, self._directory, self._bring = numbers, directory, bring
        self._state = directory.state(check_digests=False)
        self._rank_of = self._state.rank_of()
        self._closed = False
        self._ahead: deque[Shard] = deque()
        self.taken: set[int] = set()

    def next(self) -> Shard | None:
        """The next shard to compute. One thread calls this."""
        shard = self.peek()
        if shard is not None:
            self._ahead.popleft()
            self.taken.add(shard.index)
        return shard

    def peek(self) -> Shard | None:
        """The shard that ``next`` will give. One thread calls this."""
        while not self._ahead and not self._closed:
            if not (numbers := self._some()):
                return None
            self.expect(numbers)
            self._ahead.extend(self._directory.job.plan.shard(each) for each in numbers if not self._is_there(each))
        return None if self._closed else self._ahead[0]

    def close(self) -> None:
        """Give out nothing more; safe inside a signal handler."""
        self._closed = True

    def expect(self, numbers: Iterable[int]) -> None:
        """Have the files of these shards at once, which is quicker than one after the other when they are looked at."""
        self._bring(list(dict.fromkeys(file.file for number in numbers for file in self._files(number))))

    def _some(self) -> list[int]:
        """The next numbers up to one that is to be computed; more of these would be missing to other ranks."""
        numbers = []
        for number in islice(self._numbers, AT_ONCE):
            numbers.append(number)
            if not self._files(number):
                break
        return numbers

    def _is_there(self, number: int) -> bool:
        """Whether a valid file holds the shard. Its digest is checked here, so each rank reads its own share only."""
        files = self._files(number)
        digests, root = self._directory.digests, self._directory.path
        return bool(files) and all(digests.damage(root, file, check_digest=True) is None for file in files)

    def _files(self, number: int) -> Sequence[FileDigest]:
        if number in self._state.parts:
            return [self._state.parts[number].part]
        if number in self._rank_of and not self._directory.job.keeps_parts:
            return self._state.ranks[self._rank_of[number]].files
        return []


def share(rank: int, world_size: int, shards: int) -> Iterator[int]:
    """Every ``world_size``-th number from ``rank`` on: needs no word between the ranks.

    >>> list(share(1, 3, 8))
    [1, 4, 7]
    """
    return iter(range(rank, shards, world_size))


def counted(group: Group, shards: int) -> Iterator[int]:
    """Numbers from a counter in the store through which the ranks have met: a free rank takes the next shard.

    Where the store is gone its host is gone: it ended because no number was left, or it died. What is left then is
    missing at the end, which is found there and said.
    """
    if not isinstance(group.store, LauncherStore):
        raise TypeError("only the ranks of a launcher count in a store")
    with contextlib.suppress(RuntimeError):
        store = group.store.met(group)
        while not group.store.is_gone() and (number := store.add(KEY, 1) - 1) < shards:
            yield number
