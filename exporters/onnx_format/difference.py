"""``number - tensor`` in ONNX, as in ``1.0 - mask``.

torch's exporter takes it apart before it makes the types alike, and then finds no operation for a number of floating
point and a tensor of integers.
"""

from typing import Any

__all__ = ["reversed_difference"]


def reversed_difference(value: Any, other: Any, alpha: Any = 1) -> Any:
    """For the ``custom_translation_table`` of ``torch.onnx.export``: ``other - alpha * value``."""
    import onnx_ir as ir
    import torch
    from onnxscript import opset18

    op: Any = opset18
    if value.dtype.is_integer() and (_is_fraction(other) or _is_fraction(alpha)):
        value = op.Cast(
            value, to=ir.DataType.DOUBLE if torch.get_default_dtype() == torch.float64 else ir.DataType.FLOAT
        )

    def like(number: Any) -> Any:
        if not isinstance(number, (int, float)):  # Computed from a size.
            return op.CastLike(number, value)
        dtype = ir.DataType.INT64 if isinstance(number, int) else ir.DataType.DOUBLE
        return op.CastLike(op.Constant(value=ir.tensor(number, dtype=dtype)), value)

    return op.Sub(like(other), value if alpha == 1 else op.Mul(value, like(alpha)))


def _is_fraction(number: Any) -> bool:
    return isinstance(number, float) or (not isinstance(number, int) and number.dtype.is_floating_point())
