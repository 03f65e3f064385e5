"""What a writer is: it puts batches of predictions into one file, and may read them back."""

import abc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deploykit.errors import RunError, UsageError
from deploykit.tensors import TEXT, TensorSpec

__all__ = ["SAMPLE_ID", "Arrays", "Batch", "Writer", "checked", "rebatch", "refuse_text"]

Arrays = dict[str, np.ndarray[Any, Any]]

SAMPLE_ID = "sample_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Predictions of some rows: ``sample_ids`` int64 ``(n,)``, and each output ``(n, ...)``."""

    sample_ids: np.ndarray[Any, np.dtype[np.int64]]
    outputs: Arrays

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, rows: slice) -> "Batch":
        """Some of the rows, as views."""
        return Batch(
            sample_ids=self.sample_ids[rows],
            outputs={name: array[rows] for name, array in self.outputs.items()},
        )


class Writer(abc.ABC):
    """A format of prediction files.

    A new one needs ``extension`` and ``write``; with ``read`` its runs can be merged and can have an epoch interval.

    Attributes:
        extension: how its files end, without the dot.
        outputs: name, dtype and shape of every output of the model.
    """

    extension: ClassVar[str]

    def __init__(self, outputs: Sequence[TensorSpec]) -> None:
        self.outputs = tuple(outputs)

    @abc.abstractmethod
    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:
        """Write all batches, ``rows`` rows together, into the one file ``path``, in their order.

        The same batches must give the same bytes. On an error ``path`` is thrown away by the caller.
        """

    def read(self, path: Path) -> Iterator[Batch]:
        """The rows of a file in their order, in batches of any size.

        Raises:
            RunError: this writer cannot read its files.
        """
        raise RunError(
            f"writer {type(self).__name__}: cannot read {path.name}, because it has no method read(path) that "
            "yields Batch objects; add one to merge its files, or run with the writer npy or pt"
        )

    @classmethod
    def can_read(cls) -> bool:
        """Whether the writer reads its own files."""
        return cls.read is not Writer.read

    def write_epoch(self, directory: Path, rank: int, batches: Iterator[Batch], rows: int) -> list[Path]:
        """Write all predictions of one rank into ``predictions_{rank}``; the files that were written."""
        path = self.epoch_path(directory, rank)
        self.write(path, batches, rows)
        return [path]

    def read_epoch(self, directory: Path, rank: int) -> Iterator[Batch]:
        """The rows of one rank's files in their order."""
        return self.read(self.epoch_path(directory, rank))

    def epoch_path(self, directory: Path, rank: int) -> Path:
        """Where one rank's predictions are."""
        return directory / f"predictions_{rank}.{self.extension}"


def checked(specs: Sequence[TensorSpec], batch: Batch) -> Batch:
    """The batch, if it holds exactly the outputs that the model has, in their dtypes and ranks.

    Raises:
        RunError: another name, dtype, number of dimensions, number of rows or fixed size.
    """
    wanted = [spec.name for spec in specs]
    if set(batch.outputs) != set(wanted):
        raise RunError(f"predictions: the model has the outputs {wanted}, got {sorted(batch.outputs)}; export it again")
    for spec in specs:
        array = batch.outputs[spec.name]
        fits = array.dtype == spec.numpy_dtype and array.ndim == len(spec.shape) and len(array) == len(batch)
        if not fits or any(isinstance(d, int) and d != n for d, n in zip(spec.row_shape, array.shape[1:], strict=True)):
            raise RunError(
                f"predictions: output {spec.name!r} is {array.dtype}{list(array.shape)} for {len(batch)} rows, "
                f"the artifact promises {spec}; export it again"
            )
    return batch


def refuse_text(writer: str, specs: Sequence[TensorSpec]) -> None:
    """Refuse columns of text, for a format of numbers alone.

    Raises:
        UsageError: there are some.
    """
    text = [spec.name for spec in specs if spec.dtype == TEXT]
    if text:
        raise UsageError(
            f"writer {writer}: holds numbers, and {', '.join(text)} (--keep) is text; use --writer parquet, jsonl or "
            "csv, or leave it out"
        )


def rebatch(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same rows in batches of ``size``, the last one of what is left."""
    waiting: list[Batch] = []
    for batch in batches:
        while len(batch):
            room = size - sum(map(len, waiting))
            waiting.append(batch[:room])
            batch = batch[room:]
            if sum(map(len, waiting)) == size:
                yield _joined(waiting)
                waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    return Batch(
        sample_ids=np.concatenate([batch.sample_ids for batch in batches]),
        outputs={name: np.concatenate([batch.outputs[name] for batch in batches]) for name in batches[0].outputs},
    )
