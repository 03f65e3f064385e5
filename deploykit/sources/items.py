"""Turning what a dataset or a ``collate_fn`` returns into arrays, without importing torch and without silent casts."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from deploykit.errors import DataError
from deploykit.sources.base import Arrays
from deploykit.sources.keeping import Keeping
from deploykit.sources.reading import split
from deploykit.tensors import TensorSpec, check_inputs, unmasked
from deploykit.wording import counted, row_range

__all__ = ["Items"]

_PLAIN = (bool, int, float, list)
_ROW_AND_MORE: dict[type, int] = {list: 2, tuple: 8}
"""So many values alike may be a row and what belongs to it: in a list, as chunks of rows are, an image and what it
should become; in a tuple, which is how that is usually written, also a mask, a weight and the like.
"""


class Items:
    """Splits items by the model's inputs.

    An item is an array or tensor (one input), a mapping or dataclass by input name, or a tuple or list in the order of
    the inputs; a named tuple that has their names goes by these.
    What it holds beyond the inputs, labels for example, is ignored and noted in ``notes``, unless it is to be kept.
    """

    def __init__(self, inputs: Sequence[TensorSpec], what: str, notes: list[str], keeping: Keeping) -> None:
        self._inputs, self._what, self._notes, self._keeping = tuple(inputs), what, notes, keeping

    def row(self, item: Any, row: int) -> Arrays:
        """One row: by input name, arrays of the row's shape.

        Raises:
            DataError: something is missing, of another dtype, or of another shape.
        """
        where, item = f"{self._what}, row {row}", self._named(item)
        is_value = isinstance(item, list) and _depth(item) == len(self._inputs[0].row_shape)
        arrays = self._arrays(item, where, is_value=is_value)
        for spec in self._inputs:
            _require_row(spec, arrays[spec.name], where)
        return arrays | self._keeping.row(item, where)

    def batch(self, collated: Any, start: int, stop: int) -> Arrays:
        """What a ``collate_fn`` made of rows ``[start, stop)``: arrays with the rows as first dimension.

        Raises:
            DataError: as for a row, or another number of rows.
        """
        where, collated = f"{self._what}, {row_range(start, stop)}", self._named(collated)
        arrays = self._arrays(collated, where, is_value=False)
        for spec in self._inputs:
            array = arrays[spec.name]
            if array.shape[:1] != (stop - start,):
                raise DataError(
                    f"{where}: the collate_fn made {list(array.shape)} of {stop - start} rows for input {spec.name!r}; "
                    "the first dimension must be the rows"
                )
            _require_row(spec, array[0], f"{self._what}, row {start}")
        arrays |= self._keeping.batch(collated, stop - start, where)
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    def rows(self, item: Any, first: int) -> Arrays:
        """One row, or a batch of rows, as their dimensions say: arrays with the rows as first dimension.

        Raises:
            DataError: as for a row and a batch.
        """
        where, item = f"{self._what}, row {first}", self._named(item)
        is_value = isinstance(item, list) and _depth(item) == len(self._inputs[0].row_shape)
        if not is_value:
            self._refuse_rows(item, where)
        arrays = self._arrays(item, where, is_value=is_value)
        if any(arrays[spec.name].ndim != len(spec.shape) for spec in self._inputs):
            for spec in self._inputs:
                _require_row(spec, arrays[spec.name], where)
            arrays |= self._keeping.row(item, where)
            # Not ascontiguousarray, which makes an array of one dimension of a single number.
            return {name: np.asarray(array, order="C")[None] for name, array in arrays.items()}
        if len({len(array) for array in arrays.values()}) > 1:
            counts = {name: len(array) for name, array in arrays.items()}
            raise DataError(f"{where}: a batch with other numbers of rows for each input, {counts}; make them equal")
        for spec in self._inputs:
            if len(arrays[spec.name]):
                _require_row(spec, arrays[spec.name][0], where)
        arrays |= self._keeping.batch(item, len(next(iter(arrays.values()))), where)
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}

    def checked(self, arrays: Arrays, first_row: int) -> Arrays:
        """The arrays of the rows from ``first_row`` on, which have to fit the model.

        Raises:
            DataError: they do not.
        """
        try:
            check_inputs(self._inputs, split(arrays)[0], first_row=first_row)
        except DataError as error:
            raise DataError(f"{self._what}: {error}") from None
        return arrays

    def _refuse_rows(self, item: Any, where: str) -> None:
        """Refuse several rows that are no array: all but the first would pass for labels."""
        spec = self._inputs[0]
        if len(self._inputs) > 1 or type(item) not in _ROW_AND_MORE or len(item) <= _ROW_AND_MORE[type(item)]:
            return
        if all(_is_row(value, spec, where) for value in item):
            raise DataError(
                f"{where}: a {type(item).__name__} of {len(item)} values, each of which could be a row of input "
                f"{spec.name!r}, and only the first would be taken; yield rows one by one, or as one array, "
                f"np.stack(rows), and what belongs to a row beside it: yield a dict, {{{spec.name!r}: row}}"
            )

    def _named(self, item: Any) -> Any:
        """A dataclass, or a named tuple with the names of the inputs or of what is kept, as a mapping."""
        if is_dataclass(item) and not isinstance(item, type | Mapping):
            return {field.name: getattr(item, field.name) for field in fields(item)}
        names = getattr(item, "_fields", None)
        if (
            isinstance(item, tuple)
            and names is not None
            and (self._keeping.needs_mapping or {spec.name for spec in self._inputs} <= set(names))
        ):
            return dict(zip(names, item, strict=True))
        return item

    def _arrays(self, item: Any, where: str, *, is_value: bool) -> Arrays:
        values = self._split(item, where, is_value=is_value)
        return {spec.name: _array(values[spec.name], spec, where) for spec in self._inputs}

    def _split(self, item: Any, where: str, *, is_value: bool) -> dict[str, Any]:
        names = [spec.name for spec in self._inputs]
        if isinstance(item, Mapping):
            return self._by_name(item, names, where)
        if self._keeping.needs_mapping:
            raise DataError(
                f"{where}: a {type(item).__name__}, which has no keys for --map and --keep; return a dict, or "
                "leave them out"
            )
        if isinstance(item, tuple | list) and not is_value:
            return self._by_order(item, names, where)
        if len(names) > 1:
            raise DataError(
                f"{where}: a single {type(item).__name__}, the model takes {names}; "
                "return a dict by these names or a tuple in this order"
            )
        return {names[0]: item}

    def _by_name(self, item: Mapping[Any, Any], names: list[str], where: str) -> dict[str, Any]:
        keys = {name: self._keeping.keys.get(name, name) for name in names}
        missing = [key for key in keys.values() if key not in item]
        if missing:
            raise DataError(f"{where}: holds {list(item)}, the model takes {names}: missing {missing}")
        ignored = [str(key) for key in item if key not in {*keys.values(), *self._keeping.names}]
        if ignored:
            self._note(f"what the model does not take is ignored: {', '.join(sorted(ignored))}")
        return {name: item[key] for name, key in keys.items()}

    def _by_order(self, item: Sequence[Any], names: list[str], where: str) -> dict[str, Any]:
        if len(item) < len(names):
            raise DataError(f"{where}: {len(item)} values, the model takes {names}; return one for each, in this order")
        if len(item) > len(names):
            first = "first value" if len(names) == 1 else f"first {len(names)} values"
            rest = counted(len(item) - len(names), "value")
            self._note(f"what comes after the {first} of a row (a label?) is ignored: {rest}")
        return dict(zip(names, item, strict=False))

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)


def _array(value: Any, spec: TensorSpec, where: str) -> np.ndarray[Any, Any]:
    where = f"{where}: input {spec.name!r}"
    if isinstance(value, _PLAIN):
        return _exact(value, spec, where)
    try:
        # A tensor converts itself: torch need not be imported here to read what the dataset made with it.
        array = unmasked(where, value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: a {type(value).__name__} that is no array ({error}); return {spec.dtype}") from error
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _exact(value: Any, spec: TensorSpec, where: str) -> np.ndarray[Any, Any]:
    """Plain Python numbers have no dtype of their own: they take the input's.

    Floats are rounded to the nearest that a float input holds, as torch and numpy do; all else must be held exactly.
    """
    try:
        array = unmasked(where, value)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: a list that is no array ({error}); make its rows equally long") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: a {type(value).__name__} of {array.dtype}, not of numbers; return {spec.dtype}")
    with np.errstate(all="ignore"):
        cast = array.astype(spec.numpy_dtype)
        same = _held(array, cast)
    if not same:
        raise DataError(
            f"{where}: Python numbers that {spec.dtype} does not hold exactly; "
            f"round them yourself: np.asarray(value, {spec.dtype!r})"
        )
    return cast


def _held(array: np.ndarray[Any, Any], cast: np.ndarray[Any, Any]) -> bool:
    if array.dtype.kind == "f" and cast.dtype.kind == "f":
        # Rounding is expected, but a finite number must not become an infinite one.
        return bool(np.array_equal(np.isfinite(array), np.isfinite(cast)))
    return np.array_equal(cast.astype(array.dtype), array, equal_nan=array.dtype.kind == "f")


def _require_row(spec: TensorSpec, array: np.ndarray[Any, Any], where: str) -> None:
    if array.dtype != spec.numpy_dtype:
        raise DataError(
            f"{where}: input {spec.name!r} has dtype {array.dtype}, the model takes {spec}; "
            f"convert it in the dataset, for example value.astype({spec.dtype!r})"
        )
    fits = array.ndim == len(spec.row_shape)
    if not fits or any(isinstance(d, int) and d != n for d, n in zip(spec.row_shape, array.shape, strict=True)):
        raise DataError(
            f"{where}: input {spec.name!r} has the shape {list(array.shape)}, the model takes "
            f"{list(spec.row_shape)} per row"
        )


def _is_row(value: Any, spec: TensorSpec, where: str) -> bool:
    try:
        _require_row(spec, _array(value, spec, where), where)
    except DataError:
        return False
    return True


def _depth(value: Any) -> int | None:
    """How deep lists of plain numbers are nested; None if something else is in them."""
    depth = 0
    while isinstance(value, list):
        if not value or any(isinstance(item, list) != isinstance(value[0], list) for item in value):
            return None
        value, depth = value[0], depth + 1
    return depth if isinstance(value, bool | int | float) else None
