"""Sums of numbers that are kept as logarithms, in ONNX, where torch's exporter writes powers that overflow.

For the ``custom_translation_table`` of ``torch.onnx.export``.
"""

import math
from typing import Any

from exporters.onnx_format.exact import number_like

__all__ = ["log_add", "log_add_base_two", "refuse_running_log"]


def log_add(first: Any, second: Any) -> Any:
    """The larger one and what the other adds to it; equals, infinite ones too, have no difference to compute with."""
    from onnxscript import opset18

    op: Any = opset18
    double = number_like(math.log(2), first)
    apart = op.Add(op.Max(first, second), op.Softplus(op.Neg(op.Abs(op.Sub(first, second)))))
    return op.Where(op.Equal(first, second), op.Add(first, double), apart)


def log_add_base_two(first: Any, second: Any) -> Any:
    """The same for logarithms to the base of two."""
    from onnxscript import opset18

    op: Any = opset18
    base = number_like(math.log(2), first)
    return op.Div(log_add(op.Mul(first, base), op.Mul(second, base)), base)


def refuse_running_log(*_: Any, **__: Any) -> Any:
    """Stock translations add up powers, which are zero or infinite from about 88 on."""
    raise NotImplementedError("a running sum of powers is infinite, or zero, where a value is beyond 88")
