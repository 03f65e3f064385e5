"""The predictions of one rank, in the batches that its layout gives it, read from the parts of a run."""

from collections.abc import Iterator, Sequence

import numpy as np

from deploykit.errors import RunError
from deploykit.runs.layout import Layout
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.runrows import RowStream, RunRows
from deploykit.writers.base import Batch, Writer, joined, row_shapes

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
    job = directory.job
    rows_of_run = RunRows(directory.path, directory.state(check_digests=False), writer, job.plan.batch_size)
    stream, first = RowStream(rows_of_run.of(job.plan.shards())), 0
    for loader, rows in enumerate(loaders):
        for number, own in enumerate(layout.batches(rank, rows, job.plan.batch_size)):
            ids = range(first + own.start, first + own.stop, own.step)
            found = (_every(batch, ids) for batch in stream.take(ids[0], ids[-1] + 1))
            if pieces := [piece for piece in found if len(piece)]:
                _refuse_other_shapes(pieces)
                yield loader, number, joined(pieces)
        first += rows


def _every(batch: Batch, ids: range) -> Batch:
    return batch if ids.step == 1 else batch[np.flatnonzero((batch.sample_ids - ids.start) % ids.step == 0)]


def _refuse_other_shapes(pieces: list[Batch]) -> None:
    for name, shape in row_shapes(pieces[0]).items():
        other = next((found for piece in pieces if (found := piece.outputs[name].shape[1:]) != shape), None)
        if other is not None:
            raise RunError(
                f"output {name!r}: rows of shape {list(shape)} and {list(other)} meet in one batch of this layout; pad "
                "the inputs to one size, or use --layout contiguous with one rank"
            )
