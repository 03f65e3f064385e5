"""``torch.where`` and ``masked_fill`` of booleans and small integers in ONNX: ONNX Runtime has no ``Where`` of them.

For the ``custom_translation_table`` of ``torch.onnx.export``.
"""

from collections.abc import Callable
from typing import Any

__all__ = ["choice_translations"]


def choice_translations() -> dict[Any, Callable[..., Any]]:
    """They choose between int32, which holds all values of these types; all others as torch's exporter does it."""
    import torch
    from onnx_ir import DataType
    from onnxscript import opset18

    op: Any = opset18
    lacking = (DataType.BOOL, DataType.INT8, DataType.INT16)

    def where(condition: Any, value: Any, other: Any) -> Any:
        if value.dtype not in lacking:
            return op.Where(condition, value, other)
        wide = (op.Cast(each, to=DataType.INT32) for each in (value, other))
        return op.Cast(op.Where(condition, *wide), to=value.dtype)

    def filled(value: Any, mask: Any, number: Any) -> Any:
        chosen = op.CastLike(number, value)
        chosen.dtype = value.dtype
        return where(mask, chosen, value)

    aten = torch.ops.aten
    return {
        aten.masked_fill.Scalar: filled,
        aten.masked_fill.Tensor: filled,
        aten.where.self: where,
    }
