"""Poolings over dimensions of a dynamic size, in forms of which a graph can hold the sizes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

__all__ = ["largest_of_steps"]


def largest_of_steps(
    original: Any, input: Any, size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,  # noqa: A002
    ceil_mode: bool = False,
) -> Any:  # fmt: skip
    """``torch.max_pool1d``, which makes a number of the steps: ``max_pool2d`` of a single line does not."""
    if not isinstance(input.shape[-1], torch.SymInt):
        return original(input, size, stride or size, padding, dilation, ceil_mode)
    pool: Any = functional.max_pool2d
    given = ((1, size), (1, stride or size), (0, padding), (1, dilation))
    of_line = ((other, *value) if isinstance(value, Sequence) else (other, value) for other, value in given)
    return pool(input.unsqueeze(-2), *of_line, ceil_mode).squeeze(-2)
