"""Places in a tensor by numbers (``nn.Embedding``, ``gather``, ``scatter_add``) in ONNX: -1 is an error, as in torch.

ONNX counts numbers below zero from the end. By the stock translations a wrong one, such as the -100 of a label that is
to be ignored, or the last step of a sequence without steps, would read another place, and nobody would know.
"""

from collections.abc import Callable
from typing import Any

__all__ = ["lookup_translations"]

_BEYOND = 2**31 - 1
"""Of 32 bits for both types, as some kernels for CUDA cut numbers to."""


def lookup_translations() -> dict[Any, Callable[..., Any]]:
    """For the ``custom_translation_table`` of ``torch.onnx.export``."""
    import torch
    from onnxscript import opset18
    from onnxscript.function_libs.torch_lib.ops import core

    op: Any = opset18

    def embedding(
        weight: Any, indices: Any, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
    ) -> Any:
        return core.aten_embedding(weight, _from_the_front(indices), padding_idx, scale_grad_by_freq, sparse)

    def gather(value: Any, dim: int, index: Any, sparse_grad: bool = False) -> Any:
        return core.aten_gather(value, dim, _from_the_front(index), sparse_grad)

    def index_select(value: Any, dim: int, index: Any) -> Any:
        return core.aten_index_select(value, dim, _from_the_front(index))

    def scatter_add(value: Any, dim: int, index: Any, src: Any) -> Any:
        return core.aten_scatter_add(value, dim, _from_the_front(index), src)

    def scatter(value: Any, dim: int, index: Any, src: Any) -> Any:
        return core.aten_scatter_src(value, dim, _from_the_front(index), src)

    def scatter_number(value: Any, dim: int, index: Any, number: float) -> Any:
        return core.aten_scatter_value(value, dim, _from_the_front(index), number)

    def scatter_reduce(value: Any, dim: int, index: Any, src: Any, reduce: str, include_self: bool = True) -> Any:
        return core.aten_scatter_reduce(value, dim, _from_the_front(index), src, reduce, include_self)

    def one_hot(value: Any, num_classes: int = -1) -> Any:
        # OneHot knows numbers that are none and gives zeros; a look into all there are does not.
        numbers = op.Constant(value_ints=list(range(num_classes)))
        known = op.Gather(numbers, _from_the_front(value))
        return op.OneHot(known, op.Constant(value_ints=[num_classes]), op.Constant(value_ints=[0, 1]))

    aten = torch.ops.aten
    return {
        aten.embedding.default: embedding,
        aten.gather.default: gather,
        aten.index_select.default: index_select,
        aten.one_hot.default: one_hot,
        aten.scatter_add.default: scatter_add,
        aten.scatter.src: scatter,
        aten.scatter.value: scatter_number,
        aten.scatter_reduce.two: scatter_reduce,
    }


def _from_the_front(index: Any) -> Any:
    """The same numbers, but for those below zero one that no tensor has, at which runtimes stop."""
    import onnx_ir as ir
    from onnxscript import opset18

    op: Any = opset18

    def number(value: int) -> Any:
        return op.Constant(value=ir.tensor(value, dtype=index.dtype))

    maker = index.producer()
    if maker is not None and maker.op_type == "Expand":  # As gather needs it: the few numbers before are enough.
        found = op.Expand(_from_the_front(maker.inputs[0]), maker.inputs[1])
    else:
        found = op.Where(op.Less(index, number(0)), number(_BEYOND), index)
    found.shape, found.type = index.shape, index.type  # The stock translations ask for them.
    return found
