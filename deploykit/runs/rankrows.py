"""The predictions of one rank, in the batches that its layout gives it, read from the parts of a run."""

from collections.abc import Iterator, Sequence

import numpy as np

from deploykit.errors import RunError
from deploykit.runs.layout import Layout
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.runrows import RunRows
from deploykit.writers.base import Batch, Writer

__all__ = ["rank_batches"]


def rank_batches(
    directory: RunDirectory, writer: Writer, layout: Layout, rank: int, loaders: Sequence[int]
) -> Iterator[tuple[int, int, Batch]]:
    """The batches of a rank, each with the number of its dataloader and its own in that; memory holds a few of them.

    Rows that failed and were left out are in none; a batch of which nothing is left does not come.

    Args:
        directory: a run whose parts are all there.
        writer: what reads its parts.
        layout: which rows the rank has, of every dataloader.
        rank: the rank.
        loaders: rows of each dataloader, one after another; the layout starts anew with each of them.

    Raises:
        RunError: a part is missing or damaged, or rows of one batch have different shapes.
    """
    stream = _Stream(directory, writer)
    first = 0
    for loader, rows in enumerate(loaders):
        for number, own in enumerate(layout.batches(rank, rows, directory.job.plan.batch_size)):
            batch = stream.take(range(first + own.start, first + own.stop, own.step))
            if len(batch):
                yield loader, number, batch
        first += rows


class _Stream:
    """The rows of a run in order, of which ever higher ones are taken."""

    def __init__(self, directory: RunDirectory, writer: Writer) -> None:
        job = directory.job
        rows = RunRows(directory.path, directory.state(check_digests=False), writer, job.plan.batch_size)
        self._batches = rows.of(job.plan.shards())
        self._rest: Batch | None = None

    def take(self, ids: range) -> Batch:
        """The rows with these sample ids, as far as they are there."""
        pieces: list[Batch] = []
        while (batch := self._rest or next(self._batches, None)) is not None:
            first, behind = np.searchsorted(batch.sample_ids, [ids[0], ids[-1] + 1])
            if first < behind:
                pieces.append(_every(batch[first:behind], ids))
            self._rest = batch[behind:] if behind < len(batch) else None
            if self._rest is not None:
                break
        return _joined([piece for piece in pieces if len(piece)])


def _every(batch: Batch, ids: range) -> Batch:
    if ids.step == 1:
        return batch
    rows = np.flatnonzero((batch.sample_ids - ids.start) % ids.step == 0)
    return Batch(
        sample_ids=batch.sample_ids[rows], outputs={name: array[rows] for name, array in batch.outputs.items()}
    )


def _joined(pieces: list[Batch]) -> Batch:
    if not pieces:
        return Batch(sample_ids=np.empty(0, np.int64), outputs={})
    if len(pieces) == 1:
        return pieces[0]
    outputs = {}
    for name, array in pieces[0].outputs.items():
        arrays = [piece.outputs[name] for piece in pieces]
        other = next((a for a in arrays if a.shape[1:] != array.shape[1:]), array)
        if other is not array:
            raise RunError(
                f"output {name!r}: rows of shape {list(array.shape[1:])} and {list(other.shape[1:])} meet in one batch "
                "of this layout; pad the inputs to one size, or use --layout contiguous with one rank"
            )
        outputs[name] = np.concatenate(arrays)
    return Batch(sample_ids=np.concatenate([piece.sample_ids for piece in pieces]), outputs=outputs)
