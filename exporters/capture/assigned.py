"""Values assigned under a mask, ``h[mask] = 0``, as a choice by the mask: no place need be found by values for that.

torch finds the places first, as many as the values say. What each of them gets is the same, so that nothing moves from
one place to another.
"""

from types import EllipsisType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["MaskedAssignments"]


class MaskedAssignments(TorchFunctionMode):
    """For the time of a capture: what is computed stays the same."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__setitem__ and _assigned(*args):
            return None
        return func(*args, **(kwargs or {}))


def _assigned(target: Any, index: Any, value: Any) -> bool:
    """Whether the index has one mask and the value is the same at each of its places; then it is assigned."""
    items = index if isinstance(index, tuple) else (index,)
    masks = [place for place, item in enumerate(items) if isinstance(item, Tensor) and item.dtype == torch.bool]
    if len(masks) != 1:
        return False
    before, mask, after = items[: masks[0]], items[masks[0]], items[masks[0] + 1 :]
    if not all(map(_is_plain, (*before, *after))) or not _fits(target, value):
        return False
    view = target[(*before, *[slice(None)] * mask.ndim, *after)]
    from_the_end = any(item is Ellipsis for item in before)
    behind = _dimensions(after) if from_the_end else view.ndim - _dimensions(before) - mask.ndim
    mask = mask[(..., *[None] * behind)]
    if isinstance(value, Tensor) and all(isinstance(size, int) and size == 1 for size in value.shape):
        value = value.reshape(())
    if not isinstance(value, Tensor) or not value.ndim:
        view.masked_fill_(mask, value)
        return True
    if value.ndim > behind:  # A value for each place that the mask chooses.
        return False
    view.copy_(torch.where(mask, value, view))
    return True


def _is_plain(item: object) -> bool:
    """Whether it takes a part of a tensor that is known without its values; Python's booleans are masks."""
    return item is None or (isinstance(item, (int, torch.SymInt, slice, EllipsisType)) and not isinstance(item, bool))


def _dimensions(items: tuple[Any, ...]) -> int:
    """How many dimensions of a view come of these parts of an index, an ellipsis aside."""
    return sum(item is None or isinstance(item, slice) for item in items)


def _fits(target: Tensor, value: object) -> bool:
    """Whether torch would make no other value of it, as a whole number of a fraction."""
    if isinstance(value, Tensor):
        return value.dtype == target.dtype
    return isinstance(value, int) or (isinstance(value, float) and target.is_floating_point())
