"""The rows of a run directory, wherever they are: in parts, or in the files of the ranks."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from deploykit.errors import RunError
from deploykit.plan import Shard
from deploykit.runs.feed import Feed
from deploykit.runs.runstate import State
from deploykit.writers.base import Batch, Writer, rebatch
from deploykit.writers.calling import reading

__all__ = ["RowStream", "RunRows"]


class RunRows:
    """Reads shards in ascending order; one instance for one pass. Each file is read once, in a stream.

    With ``batch_size`` the rows come in the batches in which they were computed, else as the files give them.
    """

    def __init__(self, root: Path, state: State, writer: Writer, batch_size: int | None = None) -> None:
        self._root, self.state, self._writer, self._batch_size = root, state, writer, batch_size
        self._rank_of = state.rank_of()
        self._rank_files: dict[int, RowStream] = {}

    def of(self, shards: Iterable[Shard]) -> Iterator[Batch]:
        """The rows of these shards, without those that failed.

        Raises:
            RunError: a file that holds other rows than its commit says.
        """
        for shard in shards:
            feed = Feed(self._open(shard), self._writer.outputs, shard.start, shard.stop, self.state.failed_in(shard))
            yield from feed if self._batch_size is None else rebatch(feed, self._batch_size)
            feed.require_all()

    def _open(self, shard: Shard) -> Iterator[Batch]:
        if shard.index in self.state.parts:
            file = self.state.parts[shard.index].part.file
            return reading(self._writer, lambda: self._writer.read(self._root / file), file)
        if shard.index not in self._rank_of:
            raise RunError(f"shard {shard.index} (rows {shard.start} to {shard.stop - 1}): in no committed file")
        rank = self._rank_of[shard.index]
        if rank not in self._rank_files:
            self._rank_files[rank] = RowStream(
                reading(self._writer, lambda: self._writer.read_epoch(self._root, rank), f"the file of rank {rank}")
            )
        return self._rank_files[rank].take(shard.start, shard.stop)


class RowStream:
    """Batches of ascending sample ids, of which ever higher ones are taken."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._rest: Batch | None = None

    def take(self, start: int, stop: int) -> Iterator[Batch]:
        """The rows with the sample ids ``[start, stop)``, as far as they are there."""
        while (batch := self._rest or next(self._batches, None)) is not None:
            first, last = np.searchsorted(batch.sample_ids, [start, stop])
            self._rest = batch[last:] if last < len(batch) else None
            if last > first:
                yield batch[first:last]
            if self._rest is not None:
                return
