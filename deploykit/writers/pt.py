"""Files for ``torch.load(path, weights_only=True)``; for each rank in the layout that Lightning users know."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deploykit.storage.paths import is_utf8
from deploykit.tensors import TensorSpec, empty_rows
from deploykit.writers.base import NUMBERS, SAMPLE_ID, Arrays, Batch, Writer, checked

__all__ = ["PtWriter", "as_returned"]

BARE = "output"


class PtWriter(Writer):
    """A part holds ``{"sample_id": tensor, output: tensor, ...}``.

    Where the batches of a part differ in a dynamic dimension, that output is a list of one tensor per batch.
    The rows of one file are in memory while it is written: ``torch.save`` knows no appending.
    """

    extension: ClassVar[str] = "pt"
    dtypes: ClassVar[frozenset[str]] = NUMBERS
    needs: ClassVar[tuple[str, str] | None] = ("torch", "torch")

    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:  # noqa: ARG002 (the batches say it)
        """Write one part."""
        parts = [checked(self.outputs, batch) for batch in batches]
        ids = [part.sample_ids for part in parts]
        table: dict[str, Any] = {SAMPLE_ID: np.concatenate(ids) if ids else np.empty(0, np.int64)}
        for spec in self.outputs:
            table[spec.name] = _table_or_list(spec, [part.outputs[spec.name] for part in parts])
        _save_pt(path, table)

    def read(self, path: Path) -> Iterator[Batch]:
        """The rows: as one batch, or as they were written where the batches differ in shape. The file is mapped."""
        table = _load_pt(path)
        ids = table.pop(SAMPLE_ID)
        lists = [column for column in table.values() if isinstance(column, list)]
        sizes = [len(array) for array in lists[0]] if lists else [len(ids)]
        start = 0
        for index, size in enumerate(sizes):
            rows = slice(start, start + size)
            outputs = {name: col[index] if isinstance(col, list) else col[rows] for name, col in table.items()}
            yield Batch(sample_ids=ids[rows], outputs=outputs)
            start += size

    def write_epoch(self, directory: Path, rank: int, batches: Iterator[Batch], rows: int) -> list[Path]:  # noqa: ARG002
        """Write ``predictions_{rank}.pt`` and ``batch_indices_{rank}.pt``.

        The first is a list with the prediction of each batch, as the module returned it (``as_returned``);
        the second nests the sample ids as dataloader, batch, sample. All rows of the rank are in memory meanwhile.
        """
        predictions: list[Any] = []
        indices: list[list[int]] = []
        for batch in batches:
            predictions.append(as_returned(self.outputs, checked(self.outputs, batch).outputs))
            indices.append(batch.sample_ids.tolist())
        paths = [self.epoch_path(directory, rank), _indices_path(directory, rank)]
        _save_pt(paths[0], predictions)
        _save_pt(paths[1], [indices])
        return paths

    def read_epoch(self, directory: Path, rank: int) -> Iterator[Batch]:
        """The batches of one rank's two files; the predictions are mapped."""
        (indices,) = _load_pt(_indices_path(directory, rank))
        for prediction, ids in zip(_load_pt(self.epoch_path(directory, rank)), indices, strict=True):
            outputs: Arrays = prediction if isinstance(prediction, dict) else {self.outputs[0].name: prediction}
            yield Batch(sample_ids=np.array(ids, np.int64), outputs=outputs)


def as_returned(specs: Sequence[TensorSpec], outputs: Mapping[str, Any]) -> Any:
    """The bare value where the module returned a bare tensor, whose name is ``output``; else a dict by output name."""
    names = [spec.name for spec in specs]
    return outputs[BARE] if names == [BARE] else {name: outputs[name] for name in names}


def _indices_path(directory: Path, rank: int) -> Path:
    return directory / f"batch_indices_{rank}.pt"


def _table_or_list(spec: TensorSpec, arrays: list[np.ndarray[Any, Any]]) -> Any:
    if not arrays:
        return empty_rows(spec)
    return np.concatenate(arrays) if len({array.shape[1:] for array in arrays}) == 1 else arrays


def _save_pt(path: Path, value: Any) -> None:
    """Save nested lists and dicts, their arrays as tensors; the same values give the same bytes, whatever the path.

    Raises:
        OSError: the disk is full ...
    """
    import torch

    # Through an open file: given a path, torch writes the file's name into the archive.
    with path.open("wb") as file:
        try:
            torch.save(_nested(value, np.ndarray, _tensor), file)
        except RuntimeError as error:
            # The archive is closed all the same, and what that raises hides the error of the disk.
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def _load_pt(path: Path) -> Any:
    """Load what ``_save_pt`` saved, tensors as arrays that are mapped from the file."""
    import torch

    if is_utf8(path):
        loaded = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    else:  # torch maps no such path
        with path.open("rb") as file:
            loaded = torch.load(file, weights_only=True, map_location="cpu")
    return _nested(loaded, torch.Tensor, lambda tensor: tensor.numpy())


def _tensor(array: np.ndarray[Any, Any]) -> Any:
    import torch

    # A view is copied: it would drag the whole array behind it into the file, and torch refuses read-only memory.
    owned = array.base is None and array.flags.c_contiguous and array.flags.writeable
    return torch.from_numpy(array if owned else array.copy(order="C"))


def _nested(value: Any, kind: type, change: Any) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: _nested(item, kind, change) for key, item in value.items()}
    if isinstance(value, list) and not (value and isinstance(value[0], int)):
        return [_nested(item, kind, change) for item in value]
    return value
