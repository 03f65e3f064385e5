"""What ``trainer.predict_dataloaders`` is: the user's loaders as one rank has them, with its own batches."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deploykit.runs.layout import Layout
from deploykit.sources import Source
from deploykit.standin import StandIn

__all__ = ["RankBatches", "loaders_of_rank"]


class RankBatches:
    """The indices of each batch that a rank has of a dataloader of ``rows`` rows."""

    def __init__(self, layout: Layout, rank: int, rows: int, batch_size: int) -> None:
        self._layout, self._place = layout, (rank, rows, batch_size)
        self._length = sum(1 for _ in layout.batches(*self._place))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        return map(list, self._layout.batches(*self._place))


class _Loader(StandIn):
    """In the place of a DataLoader, where the data came from none."""

    def __init__(self, source: Source, batch_size: int, length: int) -> None:
        known = {"batch_size": batch_size, "num_workers": 0}
        dataset = getattr(source, "dataset", None)
        super().__init__("predict_dataloaders", known if dataset is None else {**known, "dataset": dataset})
        self._length = length

    def __len__(self) -> int:
        return self._length


def loaders_of_rank(source: Source, batches: Sequence[RankBatches], batch_size: int) -> Any:
    """The loaders as the factory returned them, each with the batches of the rank, in order."""
    made = getattr(source, "loader", None)
    return _Loader(source, batch_size, len(batches[0])) if made is None else _with(made, iter(batches))


def _with(made: Any, batches: Iterator[RankBatches]) -> Any:
    if isinstance(made, Mapping):
        return {name: _with(each, batches) for name, each in made.items()}
    if isinstance(made, list | tuple):
        return [_with(each, batches) for each in made]
    loader = copy.copy(made)
    # A DataLoader refuses another batch_sampler, because an iteration that is under way would not notice; here is none.
    object.__setattr__(loader, "batch_sampler", next(batches))
    return loader
