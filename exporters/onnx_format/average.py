"""``scatter_reduce`` with the mean in ONNX, which the stock translation writes as the last value at each place.

For the ``custom_translation_table`` of ``torch.onnx.export``.
"""

from collections.abc import Callable
from typing import Any

__all__ = ["with_means"]


def with_means(reduced: Callable[..., Any]) -> Callable[..., Any]:
    """A translation of ``scatter_reduce`` that makes means of two sums: of the values, and of ones."""
    import onnx_ir as ir
    from onnxscript import opset18

    op: Any = opset18

    def scatter_reduce(value: Any, dim: int, index: Any, src: Any, reduce: str, include_self: bool = True) -> Any:
        if reduce != "mean":
            return reduced(value, dim, index, src, reduce, include_self)
        if value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
            raise NotImplementedError("a mean of integers is rounded down, which ONNX has no operation for")
        zero, one = (op.CastLike(op.Constant(value_float=number), value) for number in (0.0, 1.0))

        def like(tensor: Any, number: Any) -> Any:
            made = op.Expand(number, op.Shape(tensor))
            made.shape, made.type = tensor.shape, tensor.type  # The stock translation asks for them.
            return made

        total = reduced(value if include_self else like(value, zero), dim, index, src, "sum")
        count = reduced(like(value, one if include_self else zero), dim, index, like(src, one), "sum")
        found = op.Div(total, op.Max(count, one))
        return found if include_self else op.Where(op.Equal(count, zero), value, found)

    return scatter_reduce
