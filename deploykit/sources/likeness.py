"""Whether two processes that call the same code have the same rows: a few rows stand for all, a few numbers for a row.

Bits are not compared: with another number of threads a sum is rounded in another way, and so is an image that is
divided by its deviation.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from deploykit.sources.base import Arrays

__all__ = ["likeness", "sampled_rows", "unlike"]

_PARTS = 3
_LARGEST = 1e280
"""Of an element; a sum of as many as memory holds is finite still."""

_PIECE = 2**16
"""Elements that are summed at once: a volume is not copied as a whole."""

_ZERO = 1e-12
"""The element of a row that may be all zeros but for rounding, as where the mean of equal values is taken from them."""


def sampled_rows(length: int) -> list[int]:
    """The first row, the last and two between: reading one may take long.

    >>> sampled_rows(1000), sampled_rows(2), sampled_rows(0)
    ([0, 333, 666, 999], [0, 1], [])
    """
    return sorted({(length - 1) * part // _PARTS for part in range(_PARTS + 1)}) if length else []


def likeness(arrays: Arrays) -> dict[str, dict[str, Any]]:
    """JSON values by name: what an array is, with a digest, or of floats two sums and how far these may be apart."""
    return {
        name: {"kind": f"{array.dtype}{list(array.shape)}"} | (_sums if array.dtype.kind == "f" else _bits)(array)
        for name, array in arrays.items()
    }


def unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names of what is not the same but for rounding."""
    return [name for name in one if name not in other or not _is_like(one[name], other[name])]


def _bits(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(array.tobytes()).hexdigest()}


def _sums(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    flat, angles = array.reshape(-1), np.arange(min(array.size, _PIECE))
    cosines, sines = np.cos(angles), np.sin(angles)
    size = weighted = 0.0
    for start in range(0, flat.size, _PIECE):
        floats = flat[start : start + _PIECE].astype(np.float64)
        values = np.clip(np.nan_to_num(floats, nan=0, posinf=_LARGEST, neginf=-_LARGEST), -_LARGEST, _LARGEST)
        size += float(np.abs(values).sum())
        # Weighted with cos(place), because the same elements in another order are another row.
        weighted += float((values * cosines[: values.size]).sum()) * math.cos(start)
        weighted -= float((values * sines[: values.size]).sum()) * math.sin(start)
    within = size * max(1e-5, 8 * float(np.finfo(array.dtype).eps)) if size else array.size * _ZERO
    return {"sums": [size, weighted], "within": within}


def _is_like(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    if one["kind"] != other["kind"] or "sums" not in one:
        return one == other
    within = max(one["within"], other["within"])
    return all(abs(mine - theirs) <= within for mine, theirs in zip(one["sums"], other["sums"], strict=True))
