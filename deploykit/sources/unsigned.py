"""Unsigned integers to keep: beyond uint8 no file of predictions has a dtype for them; signed ones hold them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from deploykit.errors import DataError

__all__ = ["KEPT_AS", "as_kept", "not_held"]

KEPT_AS = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}


def as_kept(array: np.ndarray[Any, Any], error: Callable[[int, str], DataError]) -> np.ndarray[Any, Any]:
    """An array (rows, ...) in the dtype in which it is kept.

    Args:
        array: of any dtype.
        error: makes an error of a row and a problem.

    Raises:
        DataError: a value is beyond int64.
    """
    dtype = KEPT_AS.get(array.dtype.name)
    if dtype is None:
        return array
    cast = array.astype(dtype)
    beyond = np.flatnonzero(cast < 0)
    if len(beyond):
        at = int(beyond[0])
        raise error(at * len(array) // array.size if array.ndim else 0, not_held(array.flat[at], dtype))
    return cast


def not_held(value: Any, dtype: str) -> str:
    """The problem with a value that cannot be kept."""
    return f"{value} is beyond {dtype}, in which it is kept; give the values as text, or leave them out of --keep"
