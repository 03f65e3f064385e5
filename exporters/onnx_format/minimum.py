"""Which onnxruntime a file needs: 1.15 knows all operations that are written here, but not of all types.

Found by loading models of one node each into 1.15, 1.16, 1.18 to 1.24, 1.27, 1.29 and 1.32. ``tests/runtimes.py``
replays whole artifacts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["oldest_runtime"]

_OLDEST = 15

_SINCE = {
    (operation, kind): minor
    for minor, operations, kinds in (
        (18, "Elu HardSigmoid HardSwish Mish Selu Softplus Softsign ThresholdedRelu", "DOUBLE"),
        (18, "LayerNormalization LogSoftmax Softmax", "FLOAT16"),
        (18, "Relu", "INT64"),
        (19, "Trilu", "BOOL"),
        (20, "ArgMax ArgMin ReduceMean", "INT64"),
        (20, "ArgMin", "INT8 UINT8"),
        (20, "ReduceProd", "DOUBLE"),
        (21, "Add Sub Mul Div Equal Greater GreaterOrEqual Less LessOrEqual", "INT8 INT16 UINT8"),
        (21, "DepthToSpace", "UINT8"),
        (21, "Neg", "INT16"),
        (24, "Max Min", "INT8 UINT8"),
        (27, "TopK", "INT8 INT16 UINT8"),
        (29, "Cos", "DOUBLE"),
        (29, "DepthToSpace", "INT8"),
        (29, "Trilu", "INT32"),
        (32, "Where", "INT8"),
    )
    for operation in operations.split()
    for kind in kinds.split()
}
"""Operation and type -> the version 1.x from which on ONNX Runtime has a kernel for it on the CPU."""


def oldest_runtime(file: Path) -> str:
    """The oldest one that loads the file and computes what it says, ``onnxruntime 1.15``."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    named = {name: onnx.TensorProto.DataType.Name(kind) for name, kind in types.items()}
    return f"onnxruntime 1.{max((_needed(node, named) for node in graph.node), default=_OLDEST)}"


def _needed(node: Any, types: Mapping[str, str]) -> int:
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "AveragePool" and numbers.get("ceil_mode") and numbers.get("count_include_pad"):
        return 29  # Before, what is beyond the padding is counted.
    counting = node.input[1:2] if node.op_type == "Where" else node.input[:1]
    return max((_SINCE.get((node.op_type, types.get(name, "")), _OLDEST) for name in counting), default=_OLDEST)
