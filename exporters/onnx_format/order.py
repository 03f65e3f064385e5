"""Two operations that the stock exporter to ONNX lacks: a sort that keeps the order of equals, and distances."""

import math
from typing import Any

__all__ = ["distances", "stable_sort"]


def stable_sort(value: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:  # noqa: ARG001
    """For the ``custom_translation_table`` of ``torch.onnx.export``: of equals, TopK takes the first first."""
    from onnxscript import opset18

    op: Any = opset18
    axis = dim % len(value.shape)
    size = op.Shape(value, start=axis, end=axis + 1)
    return op.TopK(value, size, axis=axis, largest=int(descending), sorted=1)


def distances(first: Any, second: Any, p: float = 2.0, compute_mode: int | None = None) -> Any:  # noqa: ARG001
    """For the same table: (..., P, M) and (..., R, M) to (..., P, R). The modes of computing differ in speed alone."""
    from onnxscript import opset18

    op: Any = opset18
    last = op.Constant(value_ints=[-1])
    apart = op.Sub(
        op.Unsqueeze(first, op.Constant(value_ints=[-2])), op.Unsqueeze(second, op.Constant(value_ints=[-3]))
    )
    if p in (1, 2):
        return (op.ReduceL1 if p == 1 else op.ReduceL2)(apart, last, keepdims=0)
    size = op.Abs(apart)
    if math.isinf(p):
        return op.ReduceMax(size, last, keepdims=0)
    if p == 0:
        return op.ReduceSum(
            op.CastLike(op.Greater(size, op.CastLike(op.Constant(value_float=0.0), size)), size), last, keepdims=0
        )
    powers = op.Pow(size, op.CastLike(op.Constant(value_float=float(p)), size))
    return op.Pow(op.ReduceSum(powers, last, keepdims=0), op.CastLike(op.Constant(value_float=1 / p), size))
