"""``clamp`` and ``hardtanh`` in ONNX.

torch's exporter makes a tensor of a limit of another type, and then finds no operation for the two; those of
``hardtanh`` it rounds to float32. And where ``Clip`` has one limit ONNX Runtime takes the largest finite number for the
other, of which infinity would come out.
"""

from typing import Any

import torch
from torch import fx

__all__ = ["clamp", "hardtanh", "with_limits_of_one_type"]

_CLAMPS = (torch.ops.aten.clamp.default, torch.ops.aten.clamp_.default)


def with_limits_of_one_type(graph: fx.Graph) -> None:
    """Write ``x.clamp(1e-6, 1)`` as ``x.clamp(1e-6, 1.0)``, where the result is of floating point."""
    for node in graph.nodes:
        if node.target in _CLAMPS and node.meta["val"].is_floating_point():
            node.args = (node.args[0], *(float(limit) if type(limit) is int else limit for limit in node.args[1:]))


def clamp(value: Any, min: Any = None, max: Any = None) -> Any:  # noqa: A002 - ATen's names
    """For the ``custom_translation_table`` of ``torch.onnx.export``: limits are numbers or None."""
    from onnxscript import opset18

    op: Any = opset18
    low, high = (None if limit is None else op.CastLike(limit, value) for limit in (min, max))
    if low is None or high is None:
        return op.Min(value, high) if low is None else op.Max(value, low)
    return op.Clip(value, low, high)


def hardtanh(value: Any, min_val: float = -1.0, max_val: float = 1.0) -> Any:
    """The same for ``hardtanh``, which always has both."""
    return clamp(value, min_val, max_val)
