"""Rows from the user's own code that come one after another, and perhaps not a second time."""

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from deploykit.errors import DataError
from deploykit.sources.base import Arrays
from deploykit.sources.items import Items
from deploykit.sources.keeping import Keeping
from deploykit.sources.loaders import Made, called, left_out
from deploykit.sources.reading import Reading
from deploykit.tensors import TensorSpec

__all__ = ["StreamSource"]

_END = object()


class StreamSource:
    """A source without rows by number: whoever wants to read it draws its rows first, with ``batches``, and keeps them.

    Attributes:
        target: the factory, as the user named it.
        why: why there are no rows by number.
        inputs: the model's inputs.
        keeping: what goes with the predictions, known when the first row has come.
    """

    def __init__(self, target: str, made: Made, inputs: Sequence[TensorSpec], reading: Reading) -> None:
        self.notes: list[str] = []
        self.target, self.inputs = target, tuple(inputs)
        self.why = next(found.in_order for found in made.found if found.in_order is not None)
        self._what, self._found = f"data {target}", made.found
        self.keeping = Keeping(reading, inputs, self._what)
        self._items = Items(inputs, self._what, self.notes, self.keeping)

    def batches(self) -> Iterator[Arrays]:
        """One or several rows at a time, by input name; each iterable is gone through once, as it is.

        Raises:
            DataError: the user's code raised something, or a row does not fit the model.
        """
        row = 0
        for found in self._found:
            first = row
            items = called(f"{self._what}: iter()", iter, found.items)
            while (item := called(f"{self._what}, row {row}: the iterable", next, items, _END)) is not _END:
                arrays = self._items.checked(self._items.rows(item, row), row)
                rows = len(next(iter(arrays.values())))
                if rows:
                    yield arrays
                row += rows
            if (text := left_out(found, row - first)) is not None:
                self.notes.append(f"{self._what}: {text}")

    def __len__(self) -> int:
        self._refuse()

    def read(self, start: int, stop: int) -> Arrays:  # noqa: ARG002 - as every source has it
        """Not here.

        Raises:
            DataError: always.
        """
        self._refuse()

    def fingerprint(self) -> dict[str, Any]:
        """Not here.

        Raises:
            DataError: always.
        """
        self._refuse()

    def close(self) -> None:
        """Let go of the iterables."""
        self._found = ()

    def _refuse(self) -> NoReturn:
        raise DataError(
            f"{self._what}: {self.why}, without rows by number; predict it with deploykit run, which keeps the rows, "
            "or return a map-style dataset with __len__ and __getitem__"
        )
