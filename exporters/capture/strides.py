"""Tensors that lie in memory in the order of their dimensions, as far as is known whatever their sizes are.

Of a part whose sizes are symbols torch asks whether it happens to, and the file would hold for the sizes of the answer.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

__all__ = ["contiguous", "in_order"]


def in_order(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it may lie in another order."""
    return tensor if _is_in_order(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def contiguous(original: Any, tensor: Any, *given: Any, **named: Any) -> Any:
    """``Tensor.contiguous``, which is ``original``."""
    return original(tensor, *given, **named) if given or named else in_order(tensor)


def _is_in_order(tensor: Tensor) -> bool:
    inner = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        if not statically_known_true(stride == inner):
            return False
        inner = inner * size
    return True
