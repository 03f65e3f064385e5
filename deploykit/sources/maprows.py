"""The rows of one map-style dataset, by number."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from deploykit.errors import DataError
from deploykit.sources.base import Arrays
from deploykit.sources.items import Items
from deploykit.sources.keeping import Keeping
from deploykit.sources.loaders import Found, called, rows_of
from deploykit.sources.readers import ReaderFailedError, Readers
from deploykit.tensors import TensorSpec
from deploykit.wording import row_range

__all__ = ["MapRows"]


class MapRows:
    """A dataset whose rows have the sample ids from ``first`` on.

    Attributes:
        stop: the sample id after its last row.
        depth: how many batches are read at the same time.

    Raises:
        DataError: the dataset has no length, or is no map-style dataset.
    """

    def __init__(
        self, found: Found, inputs: Sequence[TensorSpec], what: str, first: int, notes: list[str], keeping: Keeping
    ) -> None:
        self._what, self._inputs = what, tuple(inputs)
        self._dataset, self._collate = found.dataset, found.collate
        self.first, self.stop = first, first + rows_of(found.dataset, what)
        self._items = Items(inputs, what, notes, keeping)
        has_workers = getattr(found.items, "num_workers", 0)
        self._readers = Readers(found.items, self._items, what) if has_workers else None
        self.depth = self._readers.depth if self._readers is not None else 0

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """These are read next, in this order, after what was announced before; where the DataLoader has workers, they
        begin with it.
        """
        if self._readers is not None:
            self._readers.announce(ranges, self.first)

    def read(self, start: int, stop: int) -> Arrays:
        """The rows with the sample ids ``[start, stop)``."""
        if self._readers is None:
            return self._read_here(start, stop)
        try:
            if self._readers.expects(start, stop):
                return self._items.checked(self._readers.take(), start)
            if not self._readers.must_look:
                return self._read_here(start, stop)
            looked = self._readers.look(start, stop, self.first)
            return self._items.checked(self._items.batch(looked, start, stop), start)
        except ReaderFailedError as error:
            self._read_here(start, stop)  # Names the row.
            raise DataError(
                f"{self._what}, {row_range(start, stop)}: read well here, but not in a reader process of the "
                f"DataLoader: {error}"
            ) from error

    def close(self) -> None:
        """End the reader processes, and let go of the dataset."""
        if self._readers is not None:
            self._readers.close()
        self._dataset = self._collate = None

    def _read_here(self, start: int, stop: int) -> Arrays:
        # The user's code may fill the same memory again, for the next row or batch.
        items = self._each(range(start, stop))
        if self._collate is None:
            batch = self._stacked(self._rows(items, start), start)
        else:
            where = f"{self._what}, {row_range(start, stop)}: the collate_fn"
            batch = self._items.batch(called(where, self._collate, list(items)), start, stop)
            batch = batch if _is_default(self._collate) else _copied(batch)
        return self._items.checked(batch, start)

    def collated(self, rows: Sequence[int]) -> Any:
        """The batch of these rows as a torch ``DataLoader`` gives it, labels and all else included."""
        from torch.utils.data import default_collate

        where = f"{self._what}, rows {rows[0]} to {rows[-1]}: the collate_fn"
        return called(where, self._collate or default_collate, list(self._each(rows)))

    def _each(self, rows: Sequence[int]) -> Iterator[Any]:
        """The items of these rows: each when it is asked for, unless the dataset gives many at once."""
        places = [row - self.first for row in rows]
        many = getattr(self._dataset, "__getitems__", None)
        if many is not None:
            where = f"{self._what}, rows {rows[0]} to {rows[-1]}"
            items = called(where, lambda: list(many(places)))
            if len(items) != len(rows):
                raise DataError(f"{where}: __getitems__ returned {len(items)} rows; it must return one for each index")
            yield from items
            return
        get = self._dataset.__getitem__
        for row, place in zip(rows, places, strict=True):
            try:
                item = called(f"{self._what}, row {row}", get, place)
            except DataError as error:
                if not isinstance(error.__cause__, IndexError):
                    raise
                raise DataError(
                    f"{error}; by its length the dataset has {self.stop - self.first:,} rows: correct __len__, or the "
                    "index within this row"
                ) from error.__cause__
            yield item

    def _rows(self, items: Iterator[Any], start: int) -> list[Arrays]:
        rows: list[Arrays] = []
        problem: DataError | None = None
        for row, item in enumerate(items, start):
            try:
                rows.append(_copied(self._items.row(item, row)))
            except DataError as error:
                problem = problem or error  # What the dataset itself raises for a later row comes before it.
        if problem is not None:
            raise problem
        return rows

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
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _copied(arrays: Arrays) -> Arrays:
    return {name: array.copy() for name, array in arrays.items()}


def _is_default(collate: Any) -> bool:
    """Whether it is torch's own, which always makes new memory."""
    return getattr(collate, "__module__", "") == "torch.utils.data._utils.collate"
