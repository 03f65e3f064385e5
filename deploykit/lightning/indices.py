"""Which samples Lightning says a batch holds, and whether that can be believed.

Lightning looks the indices up in a wrapper that it puts around the batch sampler of a DataLoader. Where there is none
(any other iterable, an ``IterableDataset``), it hands over an empty list or the indices of the dataloader before.
"""

from typing import Any

from deploykit.errors import DataError
from deploykit.sources.loaders import leaves

__all__ = ["Loader", "loaders_of"]

WRAPPER = "_IndexBatchSamplerWrapper"
ADVICE = (
    "predict over a DataLoader of a map-style dataset, which Lightning can follow, or export the module and use "
    "deploykit run"
)


class Loader:
    """One dataloader of a prediction, as Lightning prepared it for this rank.

    Attributes:
        rows: samples of its dataset.
        padding: how many samples its sampler gives to the ranks once more, so that all have the same number.
        batch_size: of its batches; 1 where it does not say.

    Raises:
        DataError: it has no indices to follow, no length, or a sampler that leaves samples out.
    """

    def __init__(self, loader: Any, number: int) -> None:
        self._what, self._loader = f"dataloader {number} ({type(loader).__name__})", loader
        if type(getattr(loader, "batch_sampler", None)).__name__ != WRAPPER:
            raise DataError(
                f"{self._what}: Lightning does not know which samples its batches hold, and would give those of "
                f"another dataloader or none; {ADVICE}"
            )
        self.rows = self._length()
        sampler = getattr(loader.batch_sampler, "sampler", None)
        total = getattr(sampler, "total_size", None)
        self.padding = self._padding(sampler, total) if isinstance(total, int) else 0
        size = getattr(loader.batch_sampler, "batch_size", None)
        self.batch_size = size if isinstance(size, int) and size > 0 else 1

    def _padding(self, sampler: Any, total: int) -> int:
        # Under several ranks Lightning wraps a sampler of the user's own as the dataset of a distributed one. Any other
        # sampler may call anything its dataset.
        given = len(getattr(sampler, "dataset", self._loader.dataset))
        if total < given:
            raise DataError(
                f"{self._what}: its {type(sampler).__name__} has drop_last=True and leaves out {given - total} of "
                f"{given} samples; leave drop_last out, or the sampler: Lightning puts in one that pads nothing"
            )
        return total - given

    def checked(self, indices: Any, number: int, rows: int) -> list[int]:
        """The indices that Lightning gave for batch ``number``, whose prediction has ``rows`` rows.

        Raises:
            DataError: there are none, they are another batch's, or they do not fit the prediction or the dataset.
        """
        # The wrapper has none before it is iterated over.
        seen = getattr(self._loader.batch_sampler, "seen_batch_indices", [])
        where = f"{self._what}, batch {number}"
        if not indices or number >= len(seen) or list(seen[number]) != list(indices):
            own = _short(seen[number]) if number < len(seen) else "none"
            raise DataError(
                f"{where}: Lightning gave the batch indices {_short(indices)}, its sampler gave {own}: they are "
                f"missing or another batch's; {ADVICE}"
            )
        if len(indices) != rows:
            raise DataError(
                f"{where}: {len(indices)} samples and a prediction of {rows} rows; return one row for each sample"
            )
        if not all(hasattr(index, "__index__") and 0 <= index < self.rows for index in indices):
            raise DataError(
                f"{where}: the indices {_short(indices)} are not all numbers from 0 to {self.rows - 1}; {ADVICE}"
            )
        return [index.__index__() for index in indices]

    def _length(self) -> int:
        try:
            return len(self._loader.dataset)
        except TypeError as error:
            raise DataError(f"{self._what}: a dataset without a length ({error}); {ADVICE}") from error


def loaders_of(trainer: Any) -> list[Loader]:
    """The dataloaders of a Trainer that predicts.

    Raises:
        DataError: there is none, or as for a Loader.
    """
    several = list(leaves(trainer.predict_dataloaders))
    if not several:
        raise DataError("dataloaders []: there is no dataloader to predict; give one, or leave RunWriter out")
    return [Loader(one, number) for number, one in enumerate(several)]


def _short(indices: Any) -> str:
    items = list(indices or [])
    return str(items) if len(items) <= 4 else f"[{', '.join(map(str, items[:4]))}, ...]"
