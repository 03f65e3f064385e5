"""Keep numbers in an ONNX file what they are.

onnxscript, with which torch's exporter tidies its graphs, takes a number that is nearer to zero than 1e-8 for zero, and
drops the addition: ``p * (p + 1e-9).log()`` would be NaN where p is 0, and ``x / (norm + 1e-12)`` where a row is empty.

And a number of Python's becomes one of float32 before it takes the type of what it is added to or compared with, so
that ``metres - 5411932.68`` would be off by 0.18 in float64.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

__all__ = ["exact_constants", "number_like"]


@contextmanager
def exact_constants() -> Iterator[None]:
    """For the time of an export: a constant counts as another only up to rounding, and is cast from float64."""
    from onnxscript.rewriter import _matcher
    from torch.onnx._internal.exporter import _building

    constants_of = _building._process_python_constants

    def widened(signature: Any, named_inputs: dict[str, Any], *others: Any) -> Any:
        if signature.name in ("Cast", "CastLike") and isinstance(named_inputs["input"], float):
            named_inputs["input"] = _constant(named_inputs["input"])
        return constants_of(signature, named_inputs, *others)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(_matcher, "math", SimpleNamespace(isclose=_close)))
        stack.enter_context(mock.patch.object(_building, "_process_python_constants", widened))
        yield


def _close(first: float, second: float, *, rel_tol: float, abs_tol: float) -> bool:  # noqa: ARG001
    return math.isclose(first, second, rel_tol=min(rel_tol, 1e-7), abs_tol=0.0)


def number_like(number: float, value: Any) -> Any:
    """A number of Python's in the type of ``value``; ``value_float`` would round it to float32 before that."""
    from onnxscript import opset18

    op: Any = opset18
    return op.CastLike(op.Constant(value=_constant(number)), value)


def _constant(number: float) -> Any:
    import onnx_ir as ir

    return ir.tensor(number, dtype=ir.DataType.INT64 if isinstance(number, int) else ir.DataType.DOUBLE)
