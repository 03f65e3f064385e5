"""What goes with the predictions of items that are mappings, and which key gives which input."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploykit.errors import DataError, UsageError
from deploykit.sources.base import Arrays
from deploykit.sources.reading import KEPT, Reading
from deploykit.sources.unsigned import KEPT_AS, as_kept
from deploykit.tensors import DTYPES, TEXT, TensorSpec, unmasked

__all__ = ["Keeping"]


class Keeping:
    """The keys of items that are asked for. What a kept value is follows from the first row that has it.

    Attributes:
        names: the keys to keep.
        keys: by input the key that gives it.
        specs: by name what is kept, as far as it is known.
    """

    def __init__(self, reading: Reading, inputs: Sequence[TensorSpec], what: str) -> None:
        self.names, self._batch = reading.keep, inputs[0].shape[0]
        self.keys = _keys(reading.columns, inputs, what)
        self.specs: dict[str, TensorSpec] = {}

    @property
    def needs_mapping(self) -> bool:
        """Whether items must be mappings."""
        return bool(self.names or self.keys)

    def row(self, item: Any, where: str) -> Arrays:
        """The kept values of a row, under ``KEPT`` and their names: arrays of the row's shape.

        Raises:
            DataError: a key is missing, or its value is no number and no text, or another than in the first row.
        """
        return {f"{KEPT}{name}": self._fitting(name, _value(item, name, where), where) for name in self.names}

    def batch(self, collated: Any, rows: int, where: str) -> Arrays:
        """The same of a batch: arrays with the rows as first dimension.

        Raises:
            DataError: as for a row, or another number of rows.
        """
        found: Arrays = {}
        for name in self.names:
            array = _value(collated, name, where)
            if array.shape[:1] != (rows,):
                raise DataError(f"{where}: keep {name!r}: {list(array.shape)} for {rows} rows; give one for each row")
            if rows:
                self._fitting(name, array[0] if array.ndim > 1 else _scalar(array), where)
            found[f"{KEPT}{name}"] = np.ascontiguousarray(array)
        return found

    def _fitting(self, name: str, array: np.ndarray[Any, Any], where: str) -> np.ndarray[Any, Any]:
        dtype = TEXT if array.dtype == object else array.dtype.name
        found = TensorSpec(name=name, dtype=dtype, shape=(self._batch, *array.shape))
        if dtype == TEXT and array.ndim:
            raise DataError(f"{where}: keep {name!r}: several texts in a row; one can be kept")
        wanted = self.specs.setdefault(name, found)
        if found != wanted:
            raise DataError(
                f"{where}: keep {name!r}: {dtype}{list(array.shape)}, and {wanted.dtype}{list(wanted.row_shape)} in "
                "the rows before; give each row a value of the same dtype and shape"
            )
        return array


def _keys(columns: Mapping[str, Sequence[str]], inputs: Sequence[TensorSpec], what: str) -> dict[str, str]:
    names = [spec.name for spec in inputs]
    for name, keys in columns.items():
        if name not in names:
            raise UsageError(f"{what}: --map {name}: the model takes {', '.join(names)}; name one of these")
        if len(keys) != 1:
            raise UsageError(f"{what}: --map {name}={','.join(keys)}: of an item, one key gives an input; name one")
    return {name: keys[0] for name, keys in columns.items()}


def _value(item: Mapping[str, Any], name: str, where: str) -> np.ndarray[Any, Any]:
    if name not in item:
        raise DataError(f"{where}: holds {list(item)}, and nothing to keep as {name!r}; correct --keep")
    value, what = item[name], f"{where}: keep {name!r}"
    try:
        array = unmasked(what, value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what}: a {type(value).__name__} that is no array ({error})") from error
    if isinstance(value, str | list | tuple):
        array = _unchanged(value, array, what)
    # None is a text that is missing, as in files.
    if array.dtype.kind == "U" or (array.dtype == object and all(isinstance(each, str | None) for each in array.flat)):
        return array.astype(object)
    array = as_kept(array, lambda _, text: DataError(f"{what}: {text}"))
    if array.dtype.name not in DTYPES:
        raise DataError(
            f"{what}: a {type(value).__name__} of {array.dtype}; text and numbers can be "
            f"kept ({', '.join([*DTYPES, *KEPT_AS])}); convert it, or leave it out of --keep"
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _unchanged(value: Any, array: np.ndarray[Any, Any], what: str) -> np.ndarray[Any, Any]:
    """What numpy made of Python's values, if it gives them back; texts as they are, with what ends in a NUL."""
    given = np.array(value, object)
    if given.size and all(isinstance(each, str) for each in given.flat):
        return given
    for each, kept in zip(given.reshape(-1), array.reshape(-1).tolist(), strict=False):
        # A NaN is not equal to itself.
        if isinstance(each, str | int | float) and each == each and each != kept:
            raise DataError(f"{what}: {each!r} among other values would become {kept!r}; give all of them one type")
    return array


def _scalar(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The first element as an array without dimensions, which indexing does not give."""
    return array[:1].reshape(())
