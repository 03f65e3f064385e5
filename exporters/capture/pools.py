"""Poolings over dimensions of a dynamic size, in forms of which a graph can hold the sizes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

__all__ = ["average_parts", "largest_of_parts", "largest_of_steps", "resized"]


def largest_of_steps(
    original: Any, input: Any, kernel_size: Any, stride: Any = None, padding: Any = 0,  # noqa: A002
    dilation: Any = 1, ceil_mode: bool = False,
) -> Any:  # fmt: skip
    """``torch.max_pool1d``, which makes a number of the steps: ``max_pool2d`` of a single line does not."""
    if not isinstance(input.shape[-1], torch.SymInt):
        return original(input, kernel_size, stride or kernel_size, padding, dilation, ceil_mode)
    pool: Any = functional.max_pool2d
    given = ((1, kernel_size), (1, stride or kernel_size), (0, padding), (1, dilation))
    of_line = ((other, *value) if isinstance(value, Sequence) else (other, value) for other, value in given)
    return pool(input.unsqueeze(-2), *of_line, ceil_mode).squeeze(-2)


def average_parts(dimensions: int, original: Any, input: Any, output_size: Any) -> Any:  # noqa: A002
    """``functional.adaptive_avg_pool1d`` to ``3d``, of which the ONNX form of torch holds for multiples alone."""
    axes = _axes(dimensions, input, output_size)
    for axis, parts in axes:
        values, inside = _windows(input, axis, parts)
        input = (torch.where(inside, values, 0.0).sum(-1) / inside.sum(-1)).movedim(-1, axis)  # noqa: A001
    return input if axes else original(input, output_size)


def resized(original: Any, input: Any, *given: Any, **named: Any) -> Any:  # noqa: A002
    """``functional.interpolate``, whose ``area`` is an average of parts."""
    names = ("size", "scale_factor", "mode")
    asked = dict(zip(names, given, strict=False)) | named
    if asked.get("mode") != "area" or asked.get("size") is None:
        return original(input, *given, **named)
    dimensions = input.ndim - 2
    return average_parts(dimensions, _AVERAGES[dimensions], input, asked["size"])


_AVERAGES = {1: torch.adaptive_avg_pool1d, 2: functional.adaptive_avg_pool2d, 3: functional.adaptive_avg_pool3d}


def largest_of_parts(
    dimensions: int, original: Any, input: Any, output_size: Any, return_indices: bool = False  # noqa: A002
) -> Any:  # fmt: skip
    """``functional.adaptive_max_pool1d`` to ``3d``, of which the same is true."""
    axes = [] if return_indices else _axes(dimensions, input, output_size)
    for axis, parts in axes:
        values, _ = _windows(input, axis, parts)
        input = values.amax(-1).movedim(-1, axis)  # noqa: A001
    return input if axes else original(input, output_size, return_indices)


def _axes(dimensions: int, input: Any, output_size: Any) -> list[tuple[int, Any]]:  # noqa: A002
    """The axes with the number of their parts; none where torch's own form does."""
    sizes = output_size if isinstance(output_size, Sequence) else [output_size] * dimensions
    axes = [(axis, size) for axis, size in zip(range(-dimensions, 0), sizes, strict=True) if size is not None]
    return axes if any(isinstance(input.shape[axis], torch.SymInt) and size != 1 for axis, size in axes) else []


def _windows(input: Any, axis: int, parts: Any) -> tuple[Any, Any]:  # noqa: A002
    """The values of each part, which may overlap, as (..., parts, places), and which of the places are its own.

    A part with fewer places than the largest has its last value in those that are left.
    """
    size, part = input.shape[axis], torch.arange(parts, device=input.device).unsqueeze(-1)
    first, end = part * size // parts, ((part + 1) * size + parts - 1) // parts
    most = (size + parts - 1) // parts + 1
    places = first + torch.arange(most, device=input.device)
    values = input.movedim(axis, -1).index_select(-1, torch.minimum(places, end - 1).flatten())
    return values.unflatten(-1, (parts, most)), places < end
