"""Poolings over dimensions of a dynamic size, in forms of which a graph can hold the sizes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

__all__ = ["average_parts", "largest_of_parts", "largest_of_steps"]


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


def average_parts(dimensions: int, original: Any, input: Any, output_size: Any) -> Any:  # noqa: A002
    """``functional.adaptive_avg_pool1d`` to ``3d``, of which the ONNX form of torch holds for multiples alone."""
    parts = _parts(dimensions, input, output_size)
    for axis, inside in parts:
        values = torch.where(inside, input.movedim(axis, -1).unsqueeze(-2), 0.0)
        input = (values.sum(-1) / inside.sum(-1)).movedim(-1, axis)  # noqa: A001
    return input if parts else original(input, output_size)


def largest_of_parts(
    dimensions: int, original: Any, input: Any, output_size: Any, return_indices: bool = False  # noqa: A002
) -> Any:  # fmt: skip
    """``functional.adaptive_max_pool1d`` to ``3d``, of which the same is true."""
    parts = [] if return_indices else _parts(dimensions, input, output_size)
    for axis, inside in parts:
        values = torch.where(inside, input.movedim(axis, -1).unsqueeze(-2), -torch.inf)
        input = values.amax(-1).movedim(-1, axis)  # noqa: A001
    return input if parts else original(input, output_size, return_indices)


def _parts(dimensions: int, input: Any, output_size: Any) -> list[tuple[int, Any]]:  # noqa: A002
    """The axes with their parts, which may overlap: (parts, places) bool; none where torch's own form does."""
    sizes = output_size if isinstance(output_size, Sequence) else [output_size] * dimensions
    axes = [(axis, size) for axis, size in zip(range(-dimensions, 0), sizes, strict=True) if size is not None]
    is_dynamic = any(isinstance(input.shape[axis], torch.SymInt) and size != 1 for axis, size in axes)
    return [(axis, _inside(input.shape[axis], size, input.device)) for axis, size in axes if is_dynamic]


def _inside(size: Any, parts: int, device: torch.device) -> Any:
    places, part = torch.arange(size, device=device), torch.arange(parts, device=device).unsqueeze(-1)
    return (places >= part * size // parts) & (places < ((part + 1) * size + parts - 1) // parts)
