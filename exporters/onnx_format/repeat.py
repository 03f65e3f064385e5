"""``repeat_interleave`` in ONNX where the number of repeats is a size, such as that of the batch.

The stock translation puts that number into the dimension before the one that it belongs to, and fails when it runs.
"""

from typing import Any

__all__ = ["repeat_interleave"]


def repeat_interleave(value: Any, repeats: Any, dim: int | None = None, output_size: int | None = None) -> Any:
    """For the ``custom_translation_table`` of ``torch.onnx.export``: spread along a new dimension, which is folded."""
    from onnxscript import opset18
    from onnxscript.function_libs.torch_lib.ops.core import aten_repeat_interleave_self_int

    if isinstance(repeats, int):
        return aten_repeat_interleave_self_int(value, repeats, dim, output_size)
    op: Any = opset18
    rest = op.Constant(value_ints=[-1])
    if dim is None:
        value, axis = op.Reshape(value, rest), 0
    else:
        axis = dim % len(value.shape)
    before, size, behind = op.Shape(value, end=axis), op.Shape(value, end=axis + 1), op.Shape(value, start=axis + 1)
    spread = op.Expand(
        op.Unsqueeze(value, op.Constant(value_ints=[axis + 1])),
        op.Concat(size, op.Reshape(repeats, rest), behind, axis=0),
    )
    return op.Reshape(spread, op.Concat(before, rest, behind, axis=0))
