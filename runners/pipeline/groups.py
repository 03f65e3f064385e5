"""Join small predicted batches until they are worth a call of the writer."""

from collections.abc import Iterable, Iterator

import numpy as np

from deploykit.writers.base import Batch, size_of

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
    if not group:
        return []
    first = group[0].outputs
    if len(group) == 1 or any(batch.outputs[n].shape[1:] != first[n].shape[1:] for batch in group for n in first):
        return group
    outputs = {name: np.concatenate([batch.outputs[name] for batch in group]) for name in first}
    return [Batch(sample_ids=np.concatenate([batch.sample_ids for batch in group]), outputs=outputs)]
