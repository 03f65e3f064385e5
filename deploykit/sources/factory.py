"""Rows from the user's own code: a map-style dataset, a DataLoader or a LightningDataModule."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import DataError
from deploykit.registry import import_target
from deploykit.sources.base import Arrays
from deploykit.sources.items import Items
from deploykit.sources.loaders import Found, called, find_dataset, rows_of
from deploykit.tensors import TensorSpec, check_inputs

__all__ = ["FactorySource", "open_factory"]


class FactorySource:
    """The rows of a map-style dataset: the sample id is the index in it.

    Rows are read by one thread of this process: ``num_workers``, batch size and order of a DataLoader are not used,
    its ``collate_fn`` is.

    Attributes:
        dataset, loader, datamodule: what the factory returned, as far as it had them; None after ``close``.

    Raises:
        DataError: the dataset has no length, or a row does not fit the model.
    """

    def __init__(self, target: str, found: Found, inputs: Sequence[TensorSpec]) -> None:
        self.notes: list[str] = list(found.notes)
        self._what, self._target = f"data {target}", _without_folder(target)
        self._collate, self._inputs = found.collate, tuple(inputs)
        self.dataset, self.loader, self.datamodule = found.dataset, found.loader, found.datamodule
        self._length = rows_of(found.dataset, self._what)
        self._items = Items(inputs, self._what, self.notes)
        self._fingerprint: dict[str, Any] | None = None

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> Arrays:
        """Rows ``[start, stop)``; one thread at a time."""
        items = self._fetch(range(start, stop))
        if self._collate is None:
            batch = self._stacked([self._items.row(item, row) for row, item in enumerate(items, start)], start)
        else:
            where = f"{self._what}, rows {start} to {stop - 1}: the collate_fn"
            batch = self._items.batch(called(where, self._collate, items), start, stop)
        try:
            check_inputs(self._inputs, batch, first_row=start)
        except DataError as error:
            raise DataError(f"{self._what}: {error}") from None
        return batch

    def collated(self, rows: Sequence[int]) -> Any:
        """The batch of these rows as a torch ``DataLoader`` gives it, labels and all else included."""
        from torch.utils.data import default_collate

        where = f"{self._what}, rows {rows[0]} to {rows[-1]}: the collate_fn"
        return called(where, self._collate or default_collate, self._fetch(rows))

    def fingerprint(self) -> dict[str, Any]:
        """The target, the number of rows, and a digest of the first and the last row."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for row in sorted({0, self._length - 1}) if self._length else []:
                for name, array in self.read(row, row + 1).items():
                    digest.update(f"{name}:{array.dtype}{array.shape}".encode())
                    digest.update(array.tobytes())
            known = {"kind": "factory", "target": self._target, "rows": self._length}
            self._fingerprint = {**known, "sha256_first_last": digest.hexdigest()}
        return self._fingerprint

    def close(self) -> None:
        """Let go of the dataset."""
        self.dataset = self.loader = self.datamodule = self._collate = None

    def _fetch(self, rows: Sequence[int]) -> list[Any]:
        many = getattr(self.dataset, "__getitems__", None)
        if many is not None:
            where = f"{self._what}, rows {rows[0]} to {rows[-1]}"
            items = list(called(where, many, list(rows)))
            if len(items) != len(rows):
                raise DataError(f"{where}: __getitems__ returned {len(items)} rows; it must return one for each index")
            return items
        get = self.dataset.__getitem__
        return [called(f"{self._what}, row {row}", get, row) for row in rows]

    def _stacked(self, rows: list[Arrays], start: int) -> Arrays:
        for spec in self._inputs:
            shapes = [row[spec.name].shape for row in rows]
            other = next((offset for offset, shape in enumerate(shapes) if shape != shapes[0]), None)
            if other is not None:
                raise DataError(
                    f"{self._what}, row {start + other}: input {spec.name!r} has the shape {list(shapes[other])}, row "
                    f"{start} has {list(shapes[0])}; pad the rows to one size, or return a DataLoader with a "
                    "collate_fn that does"
                )
        return {spec.name: np.stack([row[spec.name] for row in rows]) for spec in self._inputs}


def open_factory(target: str, inputs: Sequence[TensorSpec], *, prepare: bool) -> FactorySource:
    """Call the factory, without arguments, and find the dataset in what it returns.

    Raises:
        UsageError: the factory cannot be imported.
        DataError: it raised something, or returned no map-style dataset.
    """
    factory = import_target(target, kind="data factory")
    if not callable(factory):
        raise DataError(f"data {target}: a {type(factory).__name__}, not a function; name one without arguments")
    what = f"data {target}"
    made = called(f"{what}: the factory", factory)
    return FactorySource(target, find_dataset(made, what, prepare=prepare), inputs)


def _without_folder(target: str) -> str:
    """The target, less the folder of a file: a run may be resumed from another place."""
    module, _, attribute = target.rpartition(":")
    return f"{Path(module).name}:{attribute}" if module.endswith(".py") else target
