"""The sizes of dynamic dimensions for which an exported file holds; beyond them the module does something else."""

from collections.abc import Mapping

__all__ = ["Bounds", "beyond"]

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
