"""The sizes of dynamic dimensions for which an exported file holds; beyond them the module does something else."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploykit.tensors import TensorSpec

__all__ = ["Bounds", "beyond", "row_sizes", "tighter", "too_long"]

Bounds = Mapping[str, Mapping[str, int]]
"""By dimension ``min`` and ``max``, either or both; none where every size is allowed."""


def beyond(bounds: Bounds, sizes: Mapping[str, int]) -> str | None:
    """What is wrong with the first of the sizes that is not allowed.

    >>> beyond({"batch": {"max": 99}}, {"batch": 100, "steps": 7})
    'dimension batch is 100, and the code of the model allows at most 99'
    """
    for name, size in sizes.items():
        ends = bounds.get(name, {})
        if size > ends.get("max", size):
            return f"dimension {name} is {size}, and the code of the model allows at most {ends['max']}"
        if size < ends.get("min", size):
            return f"dimension {name} is {size}, and the code of the model allows at least {ends['min']}"
    return None


def tighter(bounds: Bounds, most: Mapping[str, int]) -> Bounds:
    """The bounds with ``most`` of some dimensions.

    >>> tighter({"batch": {"min": 2}, "steps": {"max": 9}}, {"steps": 8, "batch": 99})
    {'batch': {'min': 2, 'max': 99}, 'steps': {'max': 8}}
    """
    found = {name: {**bounds.get(name, {})} for name in (*bounds, *most)}
    for name, size in most.items():
        found[name]["max"] = min(size, found[name].get("max", size))
    return found


def too_long(bounds: Bounds, inputs: Sequence[TensorSpec], arrays: Mapping[str, np.ndarray[Any, Any]]) -> str | None:
    """What is wrong with the first dimension of rows that is larger than is allowed; their number is not looked at.

    Args:
        bounds: the model's.
        inputs: the model's, as the manifest has them.
        arrays: by input name, (batch, ...).
    """
    most = {name: {"max": ends["max"]} for name, ends in bounds.items() if "max" in ends}
    return beyond(most, row_sizes(inputs, arrays))


def row_sizes(inputs: Sequence[TensorSpec], arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, int]:
    """The sizes that the dynamic dimensions of rows have, as far as there are arrays (batch, ...) of the inputs."""
    return {
        dimension: size
        for spec in inputs
        if spec.name in arrays
        for dimension, size in zip(spec.row_shape, arrays[spec.name].shape[1:], strict=False)
        if isinstance(dimension, str)
    }
