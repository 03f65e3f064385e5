"""What a writer is: it puts batches of predictions into one file, and may read them back."""

import abc
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import RunError
from deploykit.storage.paths import is_utf8
from deploykit.tensors import DTYPES, TEXT, TensorSpec

__all__ = [
    "NUMBERS", "SAMPLE_ID", "TEXT", "Arrays", "Batch", "Writer",
    "checked", "grouped", "joined", "misfit", "of_one_shape", "pieces_of_text", "rebatch", "row_shapes", "size_of",
    "stored_dtype", "texts_of",
]  # fmt: skip

Arrays = dict[str, np.ndarray[Any, Any]]

SAMPLE_ID = "sample_id"

NUMBERS = frozenset(DTYPES)

_TEXT_ROWS, _TEXT_BYTES = 65_536, 2 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Predictions of some rows: ``sample_ids`` int64 ``(n,)``, and each output ``(n, ...)``, text as objects."""

    sample_ids: np.ndarray[Any, np.dtype[np.int64]]
    outputs: Arrays

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "Batch":
        """Some of the rows: those of a slice as views, those at some places as copies."""
        return Batch(
            sample_ids=self.sample_ids[rows],
            outputs={name: array[rows] for name, array in self.outputs.items()},
        )


class Writer(abc.ABC):
    """A format of prediction files.

    A new one needs ``extension`` and ``write``; with ``read`` its runs can be merged and can have an epoch interval.

    Attributes:
        extension: how its files end, without the first dot.
        dtypes: what its columns can hold; anything else is refused before any work.
        needs: the package that it imports, and the extra of deploykit that installs it.
        outputs: name, dtype and shape of every column: the outputs of the model, then what is kept of the input.
    """

    extension: ClassVar[str]
    dtypes: ClassVar[frozenset[str]] = NUMBERS | {TEXT}
    needs: ClassVar[tuple[str, str] | None] = None

    def __init__(self, outputs: Sequence[TensorSpec]) -> None:
        self.outputs = tuple(outputs)

    def require_fit(self) -> None:  # noqa: B027 (most have nothing to add to ``dtypes``)
        """Refuse outputs that the format does not hold well; called before anything is predicted for new files.

        Raises:
            UsageError: it does not; the message says which writer does.
        """

    @abc.abstractmethod
    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:
        """Write all batches, ``rows`` rows together, into the one file ``path``, in their order.

        The same batches must give the same bytes, so nothing of the moment or the path belongs in them. On an error
        ``path`` is thrown away by the caller.
        """

    def read(self, path: Path) -> Iterator[Batch]:
        """The rows of a file in their order, in batches of any size.

        Raises:
            RunError: this writer cannot read its files.
        """
        raise RunError(
            f"writer {type(self).__name__}: cannot read {path.name}, because it has no method read(path) that "
            "yields Batch objects; add one to merge its files, or run with one of deploykit's own writers"
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
    """The batch, if it holds exactly the outputs that the model has, in their dtypes and ranks; text or None as text.

    Raises:
        RunError: another name, dtype, number of dimensions, number of rows or fixed size.
    """
    if problem := misfit(specs, batch):
        raise RunError(f"predictions: {problem}; export it again")
    for spec in specs:
        if spec.dtype == TEXT:
            array = batch.outputs[spec.name]
            _refuse_cells(spec, array, (str, type(None)), "a column of text holds text or None")
            _refuse_no_unicode(spec, array, batch.sample_ids)
    return batch


def misfit(specs: Sequence[TensorSpec], batch: Batch) -> str | None:
    """Why a batch does not hold exactly these columns, in their dtypes and shapes; None if it does."""
    if batch.sample_ids.dtype != np.int64:
        return f"sample ids of {batch.sample_ids.dtype}; a batch has them in int64"
    wanted, found = [spec.name for spec in specs], sorted(batch.outputs)
    if set(found) != set(wanted):
        missing = [name for name in wanted if name not in found]
        return f"the model has the outputs {wanted}, got {found}{f', without {missing}' if missing else ''}"
    for spec in specs:
        array = batch.outputs[spec.name]
        dtype = np.dtype(object) if spec.dtype == TEXT else spec.numpy_dtype
        fits = array.dtype == dtype and array.ndim == len(spec.shape) and len(array) == len(batch)
        if not fits or any(isinstance(d, int) and d != n for d, n in zip(spec.row_shape, array.shape[1:], strict=True)):
            return (
                f"output {spec.name!r} is {array.dtype}{list(array.shape)} for {len(batch)} rows, "
                f"the artifact promises {spec}"
            )
    return None


def _refuse_cells(spec: TensorSpec, array: np.ndarray[Any, Any], kinds: tuple[type, ...], rule: str) -> None:
    for cell in array.reshape(-1).tolist():
        if not isinstance(cell, kinds):
            raise RunError(f"column {spec.name!r}: a cell is {cell!r}; {rule}")


def _refuse_no_unicode(spec: TensorSpec, array: np.ndarray[Any, Any], ids: np.ndarray[Any, Any]) -> None:
    """Refuse what no file can hold: Python's text for the bytes of a file's name that are not UTF-8, for example."""
    for row, cell in zip(ids.tolist(), array.reshape(-1).tolist(), strict=True):
        if cell is not None and not is_utf8(cell):
            raise RunError(
                f"column {spec.name!r}, row {row}: {cell[:60]!r} is not all Unicode (of the name of a file: not all "
                "UTF-8); change the text, rename the file, or leave the column out of --keep"
            )


def texts_of(spec: TensorSpec, array: np.ndarray[Any, Any]) -> list[str]:
    """The texts of a column, for a format that has no empty cell.

    Raises:
        RunError: something else than a text.
    """
    advice = "this format has no empty cell: use the writer parquet, arrow, jsonl or csv, or fill the gaps"
    _refuse_cells(spec, array, (str,), advice)
    return cast("list[str]", array.reshape(-1).tolist())


def of_one_shape(specs: Sequence[TensorSpec], batches: Iterable[Batch], kind: str) -> Iterator[Batch]:
    """The batches, checked, for a format whose files hold each output as one array.

    Raises:
        RunError: a batch whose dynamic dimensions have other sizes than those of the first.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for batch in batches:
        for name, array in checked(specs, batch).outputs.items():
            before = shapes.setdefault(name, array.shape[1:])
            if array.shape[1:] != before:
                raise RunError(
                    f"writer {kind}: output {name!r} has rows of shape {list(array.shape[1:])} from row "
                    f"{batch.sample_ids[0]} on, and {list(before)} before; one {kind} file holds one shape: use the "
                    "writer parquet, arrow, jsonl or pt, or pad the inputs to one size"
                )
        yield batch


def stored_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """Little-endian by name, so that the bytes are the same on every machine."""
    return spec.numpy_dtype.newbyteorder("<")


def rebatch(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same rows in batches of the sample ids 0 to ``size`` - 1, and so on; ids that are left out leave no gap.

    A batch is also cut where the shape of a row changes.
    """
    waiting: list[Batch] = []
    number = -1
    for batch in batches:
        while len(batch):
            first = int(batch.sample_ids[0]) // size
            if waiting and first != number:
                yield from _joined_alike(waiting)
                waiting = []
            number = first
            room = int(np.searchsorted(batch.sample_ids, (number + 1) * size))
            waiting.append(batch[:room])
            batch = batch[room:]
    yield from _joined_alike(waiting)


def size_of(arrays: Mapping[str, np.ndarray[Any, Any]]) -> int:
    """Bytes of all the arrays together; a text takes 8 and its characters."""
    texts = (array for array in arrays.values() if array.dtype.hasobject)
    return sum(array.nbytes for array in arrays.values()) + sum(sum(_lengths(array)) for array in texts)


def _lengths(array: np.ndarray[Any, Any]) -> list[int]:
    return [len(cell) if isinstance(cell, str) else 0 for cell in array.reshape(-1).tolist()]


def grouped(batches: Iterable[Batch], rows: int, size_bytes: float = math.inf) -> Iterator[list[Batch]]:
    """The same rows in groups, each of as many as fit into ``rows`` and ``size_bytes``, one at least; views only.

    Where the cuts fall depends on the rows alone, and not on how the batches cut them.
    """
    waiting: list[Batch] = []
    rows_left, bytes_left = rows, size_bytes
    for batch in filter(len, batches):
        places = _places(batch) if size_bytes < math.inf else np.zeros(len(batch) + 1, np.int64)
        start = 0
        while start < len(batch):
            fit = min(rows_left, int(np.searchsorted(places, places[start] + bytes_left, side="right")) - 1 - start)
            if fit < 1 and waiting:
                yield waiting
                waiting, rows_left, bytes_left = [], rows, size_bytes
                continue
            stop = start + max(fit, 1)
            waiting.append(batch[start:stop])
            rows_left, bytes_left = rows_left - (stop - start), bytes_left - int(places[stop] - places[start])
            start = stop
    if waiting:
        yield waiting


def pieces_of_text(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same rows, so many at a time as are made text at once."""
    return chain.from_iterable(grouped(batches, _TEXT_ROWS, _TEXT_BYTES))


def _places(batch: Batch) -> np.ndarray[Any, np.dtype[np.int64]]:
    """At which byte each row begins, were one written behind the other, and where the last ends; ``(n + 1,)``."""
    sizes = np.zeros(len(batch), np.int64)
    for array in (batch.sample_ids, *batch.outputs.values()):
        sizes += array.nbytes // len(batch)
        if array.dtype.hasobject:
            sizes += np.array(_lengths(array), np.int64).reshape(len(batch), -1).sum(axis=1)
    return np.concatenate([[0], np.cumsum(sizes)])


def _joined_alike(batches: list[Batch]) -> Iterator[Batch]:
    for _, alike in groupby(batches, row_shapes):
        yield joined(list(alike))


def row_shapes(batch: Batch) -> dict[str, tuple[int, ...]]:
    """The shape of a row of each output."""
    return {name: array.shape[1:] for name, array in batch.outputs.items()}


def joined(batches: list[Batch]) -> Batch:
    """The rows of several batches as one."""
    if len(batches) == 1:
        return batches[0]
    return Batch(
        sample_ids=np.concatenate([batch.sample_ids for batch in batches]),
        outputs={name: np.concatenate([batch.outputs[name] for batch in batches]) for name in batches[0].outputs},
    )
