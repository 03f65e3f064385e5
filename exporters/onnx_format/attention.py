"""``scaled_dot_product_attention`` without dropout in ONNX, right where a query may attend to nothing.

torch gives zeros there. The stock exporter masks with the lowest number instead of minus infinity, and gives the mean.
It also wants heads, which torch does without: (batch, steps, size) is one head.
"""

from typing import Any

__all__ = ["attention"]


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """For the ``custom_translation_table`` of ``torch.onnx.export``: the stock translation, with zeros put in."""
    from onnxscript import opset18
    from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

    op: Any = opset18
    if len(query.shape) == 3:
        q, k, v = (_one_head(op, tensor) for tensor in (query, key, value))
        mask = attn_mask if attn_mask is None or len(attn_mask.shape) < 3 else _one_head(op, attn_mask)
        return op.Squeeze(attention(q, k, v, mask, dropout_p, is_causal, scale), op.Constant(value_ints=[1]))
    found = aten_scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
    )  # fmt: skip
    if attn_mask is None:
        return found
    zero = op.CastLike(op.Constant(value_float=0.0), found)
    return op.Where(_attends(op, attn_mask), found, zero)


def _one_head(op: Any, tensor: Any) -> Any:
    from onnx_ir import Shape

    found = op.Unsqueeze(tensor, op.Constant(value_ints=[1]))
    # The stock translation asks for both.
    found.shape, found.type = Shape([tensor.shape[0], 1, *tensor.shape[1:]]), tensor.type
    return found


def _attends(op: Any, mask: Any) -> Any:
    """Whether a query may attend to any key: the last axis of the mask becomes 1."""
    from onnx_ir import DataType

    number = op.Cast(mask, to=DataType.FLOAT)
    lowest = 0.0 if mask.dtype == DataType.BOOL else float("-inf")
    largest = op.ReduceMax(number, op.Constant(value_ints=[-1]), keepdims=1)
    return op.Greater(largest, op.Constant(value_float=lowest))
