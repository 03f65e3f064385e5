"""NaN in the inputs, and what is not finite in the outputs: looked for in every batch, at next to no cost."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deploykit.errors import DataError

__all__ = ["check_finite", "count_nan_rows", "nan_rows", "odd_rows"]

Array = np.ndarray[Any, Any]

_HALF_MAGNITUDE, _HALF_INFINITY = np.uint16(0x7FFF), np.uint16(0x7C00)


def check_finite(inputs: Mapping[str, Array], first_row: int, *, named: Callable[[int], str] = "row {}".format) -> None:
    """Refuse NaN; infinities pass. ``first_row`` is the number of the batch's first row, ``named`` a row in words.

    Raises:
        DataError: names the input, the first row with a NaN, and the place in it.
    """
    for name, array in inputs.items():
        if _has_nan(array):
            place = [int(index) for index in np.argwhere(np.isnan(array))[0]]
            where = f" at {place[1:]}" if place[1:] else ""
            raise DataError(
                f"input {name!r}, {named(first_row + place[0])}{where}: NaN; "
                "clean the data and name a new run directory, or give the same command again with --nan allow, which "
                "lets NaN through, or with --on-error skip, which leaves such rows out"
            )


def nan_rows(inputs: Mapping[str, Array]) -> dict[int, str]:
    """Place in the batch of every row with a NaN, and where the first one is: ``NaN in input 'x' at [2]``."""
    found: dict[int, str] = {}
    for name, array in inputs.items():
        if _has_nan(array):
            for place, *inner in np.argwhere(np.isnan(array)).tolist():
                found.setdefault(place, f"NaN in input {name!r}" + (f" at {inner}" if inner else ""))
    return found


def count_nan_rows(inputs: Mapping[str, Array]) -> int:
    """How many rows of the batch have a NaN in any input."""
    bad = [np.isnan(array.reshape(len(array), -1)).any(axis=1) for array in inputs.values() if _has_nan(array)]
    return int(np.logical_or.reduce(bad).sum()) if bad else 0


def odd_rows(array: Array) -> list[int]:
    """The places in the batch of the rows with a NaN or an infinity."""
    if array.dtype.kind != "f" or not array.size or _is_finite(array):
        return []
    return np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1)).tolist()


def _is_finite(array: Array) -> bool:
    if array.dtype == np.float16:
        return bool((np.ascontiguousarray(array).view(np.uint16) & _HALF_MAGNITUDE).max() < _HALF_INFINITY)
    return bool(np.isfinite(array).all())


def _has_nan(array: Array) -> bool:
    if array.dtype.kind != "f" or not array.size:
        return False
    if array.dtype == np.float16:
        # As integers: numpy has no fast arithmetic on float16, see benchmarks.
        return bool((np.ascontiguousarray(array).view(np.uint16) & _HALF_MAGNITUDE).max() > _HALF_INFINITY)
    # The minimum is NaN if any value is: half the time of isnan().any(), and nothing is allocated.
    return bool(np.isnan(array.min()))
