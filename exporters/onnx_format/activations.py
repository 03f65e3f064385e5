"""Activations in ONNX that torch's exporter does not know, or writes in a form that is slow.

For the ``custom_translation_table`` of ``torch.onnx.export``.
"""

import functools
import math
from typing import Any

from exporters.onnx_format.exact import number_like

__all__ = ["gelu", "log_sigmoid", "log_sigmoid_parts", "mean_slope"]


def gelu(value: Any, approximate: str = "none") -> Any:
    """In the orders of operations that ONNX Runtime fuses into one kernel, unlike that of torch's exporter.

    What that saves is measured by ``benchmarks/kernels.py``.
    """
    from onnxscript import opset18

    op: Any = opset18
    number = functools.partial(number_like, value=value)
    if approximate == "none":
        bend = op.Erf(op.Div(value, number(math.sqrt(2))))
        return op.Mul(op.Mul(value, op.Add(bend, number(1.0))), number(0.5))
    cubic = op.Add(value, op.Mul(op.Pow(value, number(3.0)), number(0.044715)))
    bend = op.Tanh(op.Mul(cubic, number(math.sqrt(2 / math.pi))))
    return op.Mul(op.Mul(value, number(0.5)), op.Add(bend, number(1.0)))


def log_sigmoid(value: Any) -> Any:
    """Finite where the sigmoid is too small for a number; torch's exporter takes its logarithm, which is -inf there."""
    from onnxscript import opset18

    op: Any = opset18
    return op.Neg(op.Softplus(op.Neg(value)))


def log_sigmoid_parts(value: Any) -> Any:
    """The same where a loss was taken apart; the second result is for gradients."""
    return log_sigmoid(value), value


def mean_slope(value: Any, noise: Any, lower: float = 1 / 8, upper: float = 1 / 3, **_: Any) -> Any:
    """Randomised ReLU that is off; one that is on is a site."""
    from onnxscript import opset18

    return opset18.LeakyRelu(value, alpha=(lower + upper) / 2), noise
