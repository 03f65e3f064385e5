"""``number - tensor``, whole quotients and what is left of them in ONNX: ``1.0 - mask``, ``ids // 86400``, ``ids % n``.

torch's exporter takes the first apart before it makes the types alike, and then finds no operation for a number of
floating point and a tensor of integers. Integers it divides in float32, which has 24 bits, and sizes as ONNX divides
integers, to zero: ``-(-n // 7)``, which is how Python's users round up, would be rounded down.
"""

from typing import Any

from exporters.onnx_format.exact import number_like

__all__ = ["quotient_of_sizes", "rest", "reversed_difference", "rounded_quotient"]


def quotient_of_sizes(value: Any, other: Any) -> Any:
    """For the ``custom_translation_table`` of ``torch.onnx.export``: ``value // other``, of integers, rounded down."""
    from onnxscript import opset18

    op: Any = opset18
    # Of what is a multiple, no rounding is left; the rest has the sign of the divisor, as Python's.
    return op.Div(op.Sub(value, op.Mod(value, other)), other)


def reversed_difference(value: Any, other: Any, alpha: Any = 1) -> Any:
    """The same for ``other - alpha * value``."""
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
        return number_like(number, value)

    return op.Sub(like(other), value if alpha == 1 else op.Mul(value, like(alpha)))


def rounded_quotient(value: Any, other: Any, rounding_mode: str | None = None) -> Any:
    """The same for ``value / other``, rounded down or to zero."""
    from onnx_ir import DataType
    from onnxscript import opset18
    from onnxscript.function_libs.torch_lib.ops import core

    op: Any = opset18
    # Integers of fewer bits float32 holds, and ONNX Runtime lacks operations for them.
    is_wide = value.dtype in (DataType.INT32, DataType.INT64)
    if rounding_mode is None or not is_wide or _is_fraction(other):
        return core.aten_div_mode(value, other, rounding_mode)
    other = op.CastLike(other, value)
    quotient = op.Div(value, other)  # Of integers it is rounded to zero.
    if rounding_mode == "trunc":
        return quotient
    zero, one = (op.CastLike(number, value) for number in (0, 1))
    rest = op.Sub(value, op.Mul(quotient, other))
    is_above = op.And(op.Not(op.Equal(rest, zero)), op.Xor(op.Less(rest, zero), op.Less(other, zero)))
    return op.Where(is_above, op.Sub(quotient, one), quotient)


def rest(value: Any, other: Any) -> Any:
    """The same for ``value % other``, also of a number that is computed from sizes."""
    from onnxscript import opset18
    from onnxscript.function_libs.torch_lib.ops import core

    op: Any = opset18
    if isinstance(other, (int, float)):
        return core.aten_remainder_scalar(value, other)
    return core.aten_remainder(value, op.CastLike(other, value))


def _is_fraction(number: Any) -> bool:
    return isinstance(number, float) or (not isinstance(number, int) and number.dtype.is_floating_point())
