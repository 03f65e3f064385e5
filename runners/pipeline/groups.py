"""Join small predicted batches until they are worth a call of the writer."""

from collections.abc import Iterable, Iterator

from deploykit.writers.base import Batch, joined, row_shapes, size_of

__all__ = ["grouped"]

GROUP_BYTES = 128 * 2**10


def grouped(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of one shard, joined until they have ``GROUP_BYTES``.

    Where the cuts fall follows from the sizes alone, so that a writer whose bytes show the cuts writes the same file
    again.
    """
    group: list[Batch] = []
    size = 0
    for batch in batches:
        group.append(batch)
        size += size_of(batch.outputs)
        if size >= GROUP_BYTES:
            yield from _joined(group)
            group, size = [], 0
    yield from _joined(group)


def _joined(group: list[Batch]) -> list[Batch]:
    """One batch, or the same ones where dynamic dimensions give them rows of different shapes; none without rows."""
    group = [batch for batch in group if len(batch)]
    alike = all(row_shapes(batch) == row_shapes(group[0]) for batch in group)
    return [joined(group)] if group and alike else group
