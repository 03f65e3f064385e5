"""Angles, ``log1p`` and ``expm1`` in ONNX, which has none of them, right where a form made of others is not.

torch's exporter gives -pi for the angle of a negative number (``torch.atan2(0, -1)``, a bin of a spectrum without an
imaginary part), and loses all digits of ``log1p`` and ``expm1`` of small numbers.
"""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from exporters.onnx_format.exact import number_like

__all__ = ["exact_angles", "exp_less_one", "log_of_one_and"]


@contextmanager
def exact_angles() -> Iterator[None]:
    """For the time of an export: ``torch.atan2``, and ``torch.angle`` of complex numbers."""
    from onnxscript.function_libs.torch_lib.ops import core

    with mock.patch.object(core, "_atan2", _angle):
        yield


def _angle(height: Any, width: Any, dtype: Any) -> Any:
    """A zero has a sign too, and the angle of two infinities is that of two equal numbers."""
    import onnx_ir as ir
    from onnxscript import opset18

    op: Any = opset18
    if dtype == ir.DataType.FLOAT16:  # For which ONNX Runtime lacks the arctangent.
        height, width = (op.Cast(each, to=ir.DataType.FLOAT) for each in (height, width))
        return op.Cast(_angle(height, width, ir.DataType.FLOAT), to=dtype)
    number = functools.partial(number_like, value=height)
    zero, pi = number(0.0), number(math.pi)

    def is_negative(each: Any) -> Any:
        return op.Or(op.Less(each, zero), op.Less(op.Div(number(1.0), each), zero))

    are_zero = op.And(op.Equal(height, zero), op.Equal(width, zero))
    are_infinite = op.And(op.IsInf(height), op.IsInf(width))
    quotient = op.Where(are_infinite, op.Mul(op.Sign(height), op.Sign(width)), op.Div(height, width))
    slope = op.Where(are_zero, height, quotient)
    around = op.Where(is_negative(height), op.Neg(pi), pi)
    angle = op.Atan(slope)
    return op.Where(is_negative(width), op.Add(angle, around), angle)


def log_of_one_and(value: Any) -> Any:
    """For the ``custom_translation_table`` of ``torch.onnx.export``: ``torch.log1p``.

    What the sum was rounded by is put right; a large number needs none of it.
    """
    from onnxscript import opset18

    op: Any = opset18
    one = number_like(1.0, value)
    total = op.Add(value, one)
    log = op.Log(total)
    exact = op.Where(op.Equal(total, one), value, op.Mul(log, op.Div(value, op.Sub(total, one))))
    return op.Where(op.Greater(value, one), log, exact)


def exp_less_one(value: Any) -> Any:
    """The same for ``torch.expm1``."""
    from onnxscript import opset18

    op: Any = opset18
    one = number_like(1.0, value)
    power = op.Exp(value)
    less = op.Sub(power, one)
    exact = op.Where(op.Equal(power, one), value, op.Mul(less, op.Div(value, op.Log(power))))
    return op.Where(op.Greater(op.Abs(value), one), less, exact)
