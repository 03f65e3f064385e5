"""Values that a model does not look up, found in every batch before a runtime gets it: it must cost next to nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deploykit.errors import DataError
from deploykit.tensors import Allowed, TensorSpec

__all__ = ["check_allowed", "outside"]

Array = np.ndarray[Any, Any]


def check_allowed(
    inputs: Sequence[TensorSpec],
    arrays: Mapping[str, Array],
    ids: Array,
    *,
    otherwise: str = "",
    named: Callable[[int], str] = "row {}".format,
) -> None:
    """Refuse a batch with a value that is not allowed.

    Args:
        inputs: the model's, as the manifest has them.
        arrays: by input name, (batch, ...).
        ids: (batch), the rows' sample ids.
        otherwise: what can be done other than correcting it, for the message.
        named: a row in words, by its sample id.

    Raises:
        DataError: names the first such row, the value and its place, and which are allowed and why.
    """
    wrong = outside(inputs, arrays)
    if wrong:
        place = min(wrong)
        raise DataError(f"{named(int(ids[place]))}: {wrong[place]}; correct it{otherwise}")


def outside(inputs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> dict[int, str]:
    """Place in the batch of every row with a value that is not allowed, and what is wrong with the first one.

    Arrays of another dtype or number of dimensions than the input has are left to whom they are given.

    Args:
        inputs: the model's, as the manifest has them.
        arrays: by input name, (batch, ...).
    """
    found: dict[int, str] = {}
    for spec in inputs:
        array = arrays.get(spec.name) if spec.allowed else None
        if array is None or array.dtype != spec.numpy_dtype or array.ndim != len(spec.shape):
            continue
        for allowed in spec.allowed:
            for row, why in _of_one(spec.name, allowed, allowed.of(array)):
                found.setdefault(row, why)
    return found


def _of_one(name: str, allowed: Allowed, values: Array) -> list[tuple[int, str]]:
    if not values.size or (allowed.min <= int(values.min()) and int(values.max()) <= allowed.max):
        return []
    wrong = (values < allowed.min) | (values > allowed.max)
    rows = np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1))
    return [(int(row), _why(name, allowed, values[row], wrong[row])) for row in rows]


def _why(name: str, allowed: Allowed, row: Array, wrong: Array) -> str:
    place = [int(index) for index in np.argwhere(wrong)[0]]
    value = row[tuple(place)]
    if place:
        place[0] += allowed.first_column or 0
    return f"value {value} in input {name!r}{f' at {place}' if place else ''}, {allowed}"
