"""What torch's exporter gives another type than torch: what is shifted of uint8 is int8, and ``any`` of it bool.

A 200 would become -56, and a file with such an output could not be run, because it is not what the manifest promises.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import fx

__all__ = ["shift_translations", "types_of_outputs", "with_promoted_shifts", "with_types"]

_aten = torch.ops.aten

_SHIFTS = {
    "aten_bitwise_left_shift": (_aten.bitwise_left_shift.Tensor,),
    "aten_bitwise_left_shift_tensor_scalar": (_aten.bitwise_left_shift.Tensor_Scalar, _aten.__lshift__.Scalar),
    "aten_bitwise_right_shift": (_aten.bitwise_right_shift.Tensor,),
    "aten_bitwise_right_shift_tensor_scalar": (_aten.bitwise_right_shift.Tensor_Scalar, _aten.__rshift__.Scalar),
}
"""Of each of onnxscript's translations, what it translates."""

_OPERATORS = {
    _aten.__lshift__.Tensor: _aten.bitwise_left_shift.Tensor,
    _aten.__rshift__.Tensor: _aten.bitwise_right_shift.Tensor,
}
"""``x << y`` and the function that does the same with integers."""


def shift_translations() -> dict[Any, Callable[..., Any]]:
    """For the ``custom_translation_table`` of ``torch.onnx.export``: what is shifted keeps its type."""
    from onnxscript.function_libs.torch_lib.ops import core

    return {target: _keeping(getattr(core, name)) for name, targets in _SHIFTS.items() for target in targets}


def _keeping(translation: Any) -> Callable[..., Any]:
    from onnx_ir import DataType, TensorType
    from onnxscript import opset18

    wide = DataType.INT32

    def shifted(value: Any, other: Any) -> Any:
        # Through 32 bits: onnxruntime has come to compare fewer of them late.
        if value.dtype.bitwidth >= wide.bitwidth:
            return translation(value, other)
        found = translation(widened(value), other if isinstance(other, int) else widened(other))
        return opset18.Cast(found, to=value.dtype)

    def widened(value: Any) -> Any:
        found: Any = opset18.Cast(value, to=wide)
        found.type = TensorType(wide)  # The translation asks for it.
        return found

    return shifted


def with_promoted_shifts(graph: fx.Graph) -> None:
    """Write ``x << y`` as the function: only its arguments does torch's exporter bring to one type, as torch does."""
    for node in graph.nodes:
        if node.target in _OPERATORS and not node.meta["val"].is_floating_point():
            node.target = _OPERATORS[node.target]


def types_of_outputs(graph: fx.Graph) -> list[torch.dtype]:
    """What the outputs of a captured graph are."""
    (outputs,) = graph.output_node().args
    return [node.meta["val"].dtype for node in cast(Sequence[fx.Node], outputs)]


def with_types(graph: Any, dtypes: Sequence[torch.dtype]) -> None:
    """Cast the outputs of an ONNX graph to ``dtypes`` where they have others."""
    import onnx_ir as ir

    for place, (value, kind) in enumerate(zip(graph.outputs, dtypes, strict=True)):
        dtype = ir.tensor_adapters.from_torch_dtype(kind)
        if value.dtype != dtype:
            name, value.name = value.name, f"{value.name}_as_computed"
            cast = ir.node("Cast", [value], {"to": dtype}, name=f"cast_{name}")
            found = cast.outputs[0]
            found.name, found.type, found.shape = name, ir.TensorType(dtype), value.shape
            graph.append(cast)
            graph.outputs[place] = found
