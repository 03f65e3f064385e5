"""The version of onnxruntime that a manifest names follows from the operations and types in the file.

That the versions are right ``python -m tests.runtimes`` shows, with these versions.
"""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from exporters.onnx_format.minimum import oldest_runtime


def made(path: Path, node: onnx.NodeProto, kind: int) -> Path:
    """A model of that node, behind one that makes ``x`` of the input."""
    values = [helper.make_tensor_value_info(name, kind, None) for name in ("given", "x", "found")]
    first = helper.make_node("Identity", ["given"], ["x"])
    graph = helper.make_graph([first, node], "one", values[:1], values[2:], value_info=values[1:2])
    onnx.save(helper.make_model(graph), path / "model.onnx")
    return path / "model.onnx"


@pytest.mark.parametrize(
    ("operation", "kind", "wanted"),
    [
        ("Cos", TensorProto.FLOAT, "1.15"),
        ("Cos", TensorProto.DOUBLE, "1.29"),
        ("Trilu", TensorProto.FLOAT, "1.15"),
        ("Trilu", TensorProto.BOOL, "1.19"),
        ("ArgMax", TensorProto.INT64, "1.20"),
    ],
)
def test_the_type_that_is_computed_with_counts(tmp_path: Path, operation: str, kind: int, wanted: str) -> None:
    file = made(tmp_path, helper.make_node(operation, ["x"], ["found"]), kind)
    assert oldest_runtime(file) == f"onnxruntime {wanted}"


@pytest.mark.parametrize(("kind", "wanted"), [(TensorProto.INT8, "1.32"), (TensorProto.INT32, "1.15")])
def test_of_a_choice_the_values_count_and_not_the_condition(tmp_path: Path, kind: int, wanted: str) -> None:
    file = made(tmp_path, helper.make_node("Where", ["given", "x", "x"], ["found"]), kind)
    assert oldest_runtime(file) == f"onnxruntime {wanted}"


@pytest.mark.parametrize(("ceil_mode", "count_include_pad", "wanted"), [(1, 1, "1.29"), (1, 0, "1.15"), (0, 1, "1.15")])
def test_an_average_beyond_its_padding_needs_a_version_that_counts_right(
    tmp_path: Path, ceil_mode: int, count_include_pad: int, wanted: str
) -> None:
    node = helper.make_node(
        "AveragePool", ["x"], ["found"], kernel_shape=[2], ceil_mode=ceil_mode, count_include_pad=count_include_pad
    )
    assert oldest_runtime(made(tmp_path, node, TensorProto.FLOAT)) == f"onnxruntime {wanted}"
