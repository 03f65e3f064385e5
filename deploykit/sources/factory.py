"""Rows from the user's own code: a map-style dataset, DataLoaders or a LightningDataModule."""

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import DataError, UsageError
from deploykit.registry import import_target
from deploykit.sources.base import Arrays
from deploykit.sources.keeping import Keeping
from deploykit.sources.likeness import likeness, sampled_rows, unlike
from deploykit.sources.loaders import Made, called, find_datasets
from deploykit.sources.maprows import MapRows
from deploykit.sources.reading import Reading, split
from deploykit.sources.stream import StreamSource
from deploykit.tensors import TensorSpec

__all__ = ["FactorySource", "open_factory", "without_folder"]


class FactorySource:
    """The rows of map-style datasets, one after another: the sample id is the index in the only one.

    Batch size and order of a DataLoader are not used, its ``collate_fn`` is, and so are its workers for rows that were
    announced with ``expect``. All others are read by one thread of this process.

    Attributes:
        kept: what goes with the predictions, as the first row has it.
        depth: how many batches are read at the same time, by the workers of a DataLoader.
        loader: the DataLoader, or the list or dict of several, as the factory returned it.
        loader_rows: the rows of each, in order.
        dataset: the dataset, where there is one.
        datamodule: the LightningDataModule.

    Raises:
        DataError: a dataset has no length, or a row does not fit the model.
    """

    def __init__(self, target: str, made: Made, inputs: Sequence[TensorSpec], reading: Reading) -> None:
        self.notes: list[str] = list(dict.fromkeys(note for found in made.found for note in found.notes))
        self._what, self._target = f"data {target}", without_folder(target)
        self._keeping = Keeping(reading, inputs, self._what)
        self._parts = self._opened(made, inputs)
        self.loader_rows = tuple(part.stop - part.first for part in self._parts)
        self.dataset = made.found[0].dataset if len(made.found) == 1 else None
        self.loader, self.datamodule = made.loaders, made.datamodule
        self._length = sum(self.loader_rows)
        self.depth = max((part.depth for part in self._parts), default=0)
        self._fingerprint: dict[str, Any] | None = None
        self._looks: dict[str, Any] = {}
        if self._keeping.needs_mapping and self._length:
            self.read(0, 1)
        self.kept = tuple(self._keeping.specs[name] for name in self._keeping.names if self._length)
        if reading.index is not None:
            self._refuse_other(reading.index)

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> Arrays:
        """Rows ``[start, stop)``; one thread at a time."""
        ranges = [(part, max(start, part.first), min(stop, part.stop)) for part in self._parts]
        found = [part.read(first, end) for part, first, end in ranges if first < end]
        return found[0] if len(found) == 1 else self._joined(found, start, stop)

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """These calls of ``read`` come after those that were announced before."""
        for part in self._parts:
            part.expect([(start, stop) for start, stop in ranges if part.first <= start and stop <= part.stop])

    def cuts(self, start: int, stop: int) -> list[int]:
        """The rows between ``start`` and ``stop`` where a dataloader begins: its ``collate_fn`` may pad its own way."""
        return sorted({part.first for part in self._parts if start < part.first < stop})

    def collated(self, rows: Sequence[int]) -> Any:
        """The batch of these rows, all of one dataloader, as it gives it, labels and all else included."""
        part = next(part for part in self._parts if part.first <= rows[0] < part.stop)
        return part.collated(rows)

    def fingerprint(self) -> dict[str, Any]:
        """The target, the number of rows, and a digest of a few of them.

        Raises:
            DataError: the first or the last row cannot be read, or is not the same when it is read again.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for row in sampled_rows(self._length):
                arrays = self._steady(row) if row in (0, self._length - 1) else self._read_if_possible(row)
                self._looks[str(row)] = None if arrays is None else likeness(arrays)
                for name, array in (arrays or {}).items():
                    digest.update(f"{row}:{name}:{array.dtype}{array.shape}".encode())
                    digest.update(array.tobytes())
            known = {"kind": "factory", "target": self._target, "rows": self._length}
            keys = {"keys": self._keeping.keys} if self._keeping.keys else {}
            several = {"loaders": list(self.loader_rows)} if len(self._parts) > 1 else {}
            self._fingerprint = {**known, **keys, **several, "sha256_sample": digest.hexdigest()}
        return self._fingerprint

    def index(self) -> dict[str, Any]:
        """What the rows have to be in each other process of the run, which calls the factory itself."""
        self.fingerprint()
        return {"rows": self._length, "looks": self._looks}

    def _refuse_other(self, index: dict[str, Any]) -> None:
        """Refuse rows that are not those of the process that began the run: some would be lost, others doubled.

        Raises:
            DataError: says the first that is another.
        """
        said = None
        if index["rows"] != self._length:
            said = f"{self._length:,} rows, and {index['rows']:,}"
        # Another order changes those between, too, and a look may cost a process.
        rows = sampled_rows(self._length) if said is None else []
        for row in rows[1:-1] or rows:
            before = index["looks"][str(row)]
            arrays = self._read_if_possible(row) if before is not None else None
            if arrays is not None and (other := unlike(before, likeness(arrays))):
                said = f"another row {row:,} ({', '.join(other)}) than"
                break
        if said is not None:
            raise DataError(
                f"{self._what}: its code gave in this process {said} in the one that began the run; each rank calls it "
                "again, so it must give the same rows in the same order each time: seed what is random (random_split "
                "with a generator), and sort what comes from a set or a folder"
            )

    def _read_if_possible(self, row: int) -> Arrays | None:
        """The inputs of a row; None where they cannot be read: who predicts it says why, or leaves it out."""
        try:
            return split(self.read(row, row + 1))[0]
        except DataError:
            return None

    def _steady(self, row: int) -> Arrays:
        """A row, which has to be the same each time."""
        arrays, again = (split(self.read(row, row + 1))[0] for _ in range(2))
        for name, array in arrays.items():
            if not np.array_equal(array, again[name], equal_nan=array.dtype.kind in "fc"):
                raise DataError(
                    f"{self._what}, row {row}: {name} has other values when it is read a second time, as a random "
                    "transform makes them: other ranks, or a run that is resumed, would predict something else. Leave "
                    "random transforms out, seed them with the index of the row, or yield the rows one by one: an "
                    "iterable is gone through once"
                )
        return arrays

    def close(self) -> None:
        """End the reader processes, and let go of the datasets."""
        for part in self._parts:
            part.close()
        self.dataset = self.loader = self.datamodule = None
        self._parts = []

    def _opened(self, made: Made, inputs: Sequence[TensorSpec]) -> list[MapRows]:
        parts: list[MapRows] = []
        for number, found in enumerate(made.found):
            first = parts[-1].stop if parts else 0
            what = f"{self._what} (dataloader {number}, from row {first})" if len(made.found) > 1 else self._what
            parts.append(MapRows(found, inputs, what, first, self.notes, self._keeping))
        return parts

    def _joined(self, found: list[Arrays], start: int, stop: int) -> Arrays:
        try:
            return {name: np.concatenate([arrays[name] for arrays in found]) for name in found[0]}
        except ValueError as error:
            raise DataError(
                f"{self._what}, rows {start} to {stop - 1}: two dataloaders meet there, whose rows have other shapes "
                f"({error}); pad them to one size"
            ) from error


def open_factory(
    target: str, inputs: Sequence[TensorSpec], *, prepare: bool, reading: Reading
) -> FactorySource | StreamSource:
    """Call the factory, without arguments, and find the datasets in what it returns.

    Where one of them has no rows by number, all are a stream.

    Raises:
        UsageError: the factory cannot be imported.
        DataError: it raised something, or returned nothing that has rows.
    """
    if target.startswith("__main__:"):
        raise UsageError(
            f"data {target}: __main__ is another program in each rank and in a run that is resumed; put the function "
            "into a file (in a notebook with %%writefile data.py) and name it as data.py:function"
        )
    factory = import_target(target, kind="data factory")
    if not callable(factory):
        raise DataError(
            f"data {target}: is of type {type(factory).__name__} and not a function; name one without arguments"
        )
    if inspect.isclass(factory) and hasattr(factory, "fingerprint"):
        raise UsageError(
            f"data {target}: is a source, which reads a place; name that behind it: --data {target}:PLACE, where PLACE "
            "is a file, a folder or a URL"
        )
    what = f"data {target}"
    made = find_datasets(called(f"{what}: the factory", factory), what, prepare=prepare)
    if any(found.in_order is not None for found in made.found):
        return StreamSource(target, made, inputs, reading)
    return FactorySource(target, made, inputs, reading)


def without_folder(target: str) -> str:
    """The target, less the folder of a file: a run may be resumed from another place."""
    module, _, attribute = target.rpartition(":")
    return f"{Path(module).name}:{attribute}" if module.endswith(".py") else target
