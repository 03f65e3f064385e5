"""Write a captured graph as an ONNX file, with control inputs that have defaults.

torch's exporter translates the graph. Then the inputs that the graph needs (``sample_ids`` for every row, ``draw_ids``)
are computed in a few nodes in front of it from what a client may or may not give.
"""

import importlib.util
import logging
import operator
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import ExportError, MissingExtraError
from deploykit.wording import first_line
from exporters.capture.graph import Captured, logging_only, quiet
from exporters.capture.recurrence import dynamic_steps
from exporters.inputs import Controls
from exporters.noise.mask_ops import SHIFT_RIGHT
from exporters.noise.sites import module_of
from exporters.onnx_format.activations import gelu, log_sigmoid, log_sigmoid_parts, mean_slope
from exporters.onnx_format.addition import log_add, log_add_base_two, refuse_running_log
from exporters.onnx_format.arithmetic import quotient_of_sizes, rest, reversed_difference, rounded_quotient
from exporters.onnx_format.attention import attention
from exporters.onnx_format.average import with_means
from exporters.onnx_format.choice import choice_translations
from exporters.onnx_format.elementary import exact_angles, exp_less_one, log_of_one_and
from exporters.onnx_format.exact import exact_constants
from exporters.onnx_format.limits import clamp, hardtanh, with_limits_of_one_type
from exporters.onnx_format.lookup import lookup_translations
from exporters.onnx_format.matching import matched_by_kind
from exporters.onnx_format.names import (
    free_names_of_users,
    name_dimensions,
    restore_lost_constants,
    restore_weight_names,
)
from exporters.onnx_format.order import distances, stable_sort
from exporters.onnx_format.pools import average_translations
from exporters.onnx_format.ranks import rank_translations
from exporters.onnx_format.recurrence import recurrent_translations, refuse_projections
from exporters.onnx_format.repeat import repeat_interleave
from exporters.onnx_format.types import shift_translations, types_of_outputs, with_promoted_shifts, with_types

__all__ = ["OPSET", "require_packages", "write_onnx"]

OPSET = 18
"""Old enough for onnxruntime 1.15 of 2023, new enough for all that the masks need."""

# Protocol buffers cannot hold more than 2 GiB; weights above this go to a file of their own.
_INLINE_LIMIT_BYTES = 1_500_000_000

_LOGGERS = ("torch.onnx", "onnxscript")
"""Both warn of what is no concern of the user's, such as that torchvision is absent."""


def write_onnx(
    captured: Captured, path: Path, inputs: Sequence[str], outputs: Sequence[str], controls: Controls | None
) -> None:
    """Translate and save at ``path`` (and ``path.data`` for large models).

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        ExportError: an operation that has no ONNX form.
    """
    require_packages()
    import onnx_ir as ir
    import torch

    refuse_projections(captured)
    with_limits_of_one_type(captured.program.graph)
    with_promoted_shifts(captured.program.graph)
    dtypes = types_of_outputs(captured.program.graph)
    names = [*inputs, *(("sample_ids", "draw_ids", "seed") if controls else ())]
    try:
        with (
            quiet(), logging_only(logging.ERROR, *_LOGGERS), dynamic_steps(), exact_constants(), exact_angles(),
            matched_by_kind(), torch.no_grad(),
        ):  # fmt: skip
            program: Any = torch.onnx.export(
                captured.program,
                dynamo=True,
                input_names=names,
                output_names=list(outputs),
                opset_version=OPSET,
                custom_translation_table=_translations(),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise _refusal(error) from error
    model: ir.Model = program.model
    restore_lost_constants(model.graph)
    with_types(model.graph, dtypes)
    if controls is not None:
        _add_controls(model, controls)
    _forget_origin(model)
    restore_weight_names(model.graph)
    free_names_of_users(model.graph)
    name_dimensions(model.graph, captured.symbols)
    _save(model, path)


def require_packages() -> None:
    """See that there is what the exporter to ONNX needs.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "onnx", "exporting to ONNX")


def _translations() -> dict[Any, Any]:
    """Operations that the stock exporter does not know, writes out step by step, or gets wrong."""
    import torch

    aten, lookup = torch.ops.aten, lookup_translations()
    return {
        SHIFT_RIGHT: _shift_right(),
        operator.floordiv: quotient_of_sizes,
        aten.scaled_dot_product_attention.default: attention,
        aten.clamp.default: clamp,
        aten.div.Scalar_mode: rounded_quotient,
        aten.div.Tensor_mode: rounded_quotient,
        aten.expm1.default: exp_less_one,
        aten.gelu.default: gelu,
        aten.hardtanh.default: hardtanh,
        aten.log1p.default: log_of_one_and,
        aten.log_sigmoid.default: log_sigmoid,
        aten.log_sigmoid_forward.default: log_sigmoid_parts,
        aten.logaddexp.default: log_add,
        aten.logaddexp2.default: log_add_base_two,
        aten.logcumsumexp.default: refuse_running_log,
        aten.repeat_interleave.self_int: repeat_interleave,
        aten.remainder.Scalar: rest,
        aten.rsub.Scalar: reversed_difference,
        aten.sort.stable: stable_sort,
        aten.cdist.default: distances,
        aten.rrelu_with_noise_functional.default: mean_slope,
        **average_translations(),
        **lookup,
        aten.scatter_reduce.two: with_means(lookup[aten.scatter_reduce.two]),
        **choice_translations(),
        **rank_translations(),
        **recurrent_translations(),
        **shift_translations(),
    }


def _shift_right() -> Any:
    from onnxscript import opset18 as op

    def shift_right(value: Any, bits: int) -> Any:
        return op.Div(value, op.Constant(value_int=2**bits))

    return shift_right


def _refusal(error: BaseException) -> ExportError:
    """Which module asks for what ONNX does not have, as far as torch's exporter had come, and what to do."""
    found, causes = None, [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            node = frame.f_locals.get("node")
            found = node if hasattr(node, "meta") and hasattr(node, "target") else found
    # The innermost cause says what failed; the outer texts list steps of the exporter.
    reason = first_line(causes[-1])
    part = module_of(found) if found else None
    owner, parametrized, _ = (part or "").partition(".parametrizations.")
    advice = "export with --format torchscript, or " + (
        f"keep the weight itself, with torch.nn.utils.parametrize.remove_parametrizations of {owner}"
        if parametrized
        else "write it with other operations"
    )
    if found is None:
        return ExportError(f"ONNX cannot express the captured graph: {reason}; {advice}")
    if "No ONNX function found" in reason:
        return ExportError(f"{part}: {found.target} has no ONNX form; {advice}", part=part)
    if "SymbolicTensor" in reason:
        reason = "a number in them is computed from the size of the inputs"
    form = f"{found.target} has no ONNX form with the arguments that it has"
    return ExportError(f"{part}: {form}: {reason}; {advice}", part=part)


def _add_controls(model: Any, controls: Controls) -> None:
    """Put the nodes in front that make ``sample_ids`` and ``draw_ids`` out of optional inputs."""
    import onnx_ir as ir

    graph = model.graph
    by_name = {value.name: value for value in graph.inputs}
    batch_input, ids, draw_ids, seed = graph.inputs[0], by_name["sample_ids"], by_name["draw_ids"], by_name["seed"]
    given = _optional(graph, "sample_ids", np.zeros(0, np.int64), ("sample_ids_given",))
    first = _optional(graph, "first_draw", np.asarray(0, np.int64))
    draws = _optional(graph, "draws", np.asarray(controls.draws, np.int64))
    seed_default = _optional(graph, "seed", np.asarray(controls.seed, np.int64))
    front = _Front(graph)
    # An empty sample_ids means 0, 1, 2 ...; any other length than the batch's fails at the Reshape.
    rows, count = front("Shape", batch_input, start=0, end=1), front("Shape", given)
    numbered = front("Range", front.number(0), front("Squeeze", rows), front.number(1))
    length = front("Where", front("Equal", count, front.vector(0)), rows, count)
    chosen = front("Slice", front("Concat", given, numbered, axis=0), front.vector(0), length, front.vector(0))
    row_ids = front("Reshape", chosen, rows)
    numbers = front("Range", first, front("Add", first, draws), front.number(1))
    for old, new in ((ids, row_ids), (draw_ids, numbers), (seed, seed_default)):
        new.shape = new.shape or old.shape
        ir.convenience.replace_all_uses_with(old, new)
        graph.inputs.remove(old)
    graph.inputs.extend([given, seed_default, first, draws])
    front.insert()


def _optional(graph: Any, name: str, default: Any, shape: Sequence[str] = ()) -> Any:
    """An input that has a default: a graph input and an initializer of one name."""
    graph.initializers[name] = value = _integers(name, default, shape)
    return value


def _integers(name: str, value: Any, shape: Sequence[Any]) -> Any:
    import onnx_ir as ir

    return ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape(shape),
        const_value=ir.tensor(value, name=name),
    )


class _Front:
    """Nodes to be put before all others."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._nodes: list[Any] = []

    def __call__(self, operation: str, *inputs: Any, **attributes: Any) -> Any:
        import onnx_ir as ir

        node = ir.node(operation, list(inputs), attributes or None, name=f"control_{len(self._nodes)}")
        node.outputs[0].name = f"control_{len(self._nodes)}"
        node.outputs[0].type = ir.TensorType(ir.DataType.BOOL if operation == "Equal" else ir.DataType.INT64)
        self._nodes.append(node)
        return node.outputs[0]

    def number(self, value: int) -> Any:
        return self._constant(f"control_number_{value}", np.asarray(value, np.int64))

    def vector(self, value: int) -> Any:
        return self._constant(f"control_vector_{value}", np.asarray([value], np.int64))

    def _constant(self, name: str, value: Any) -> Any:
        if name not in self._graph.initializers:
            self._graph.initializers[name] = _integers(name, value, value.shape)
        return self._graph.initializers[name]

    def insert(self) -> None:
        self._graph.insert_before(self._graph[0], self._nodes)


def _forget_origin(model: Any) -> None:
    """Remove stack traces and the like: they hold paths of the exporting machine, and change from build to build."""
    model.producer_name, model.producer_version = "deploykit", None
    model.metadata_props.clear()
    graphs = [model.graph, *model.functions.values()]
    for graph in graphs:
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()


def _save(model: Any, path: Path) -> None:
    import onnx_ir as ir

    size_bytes = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    model.ir_version = 8  # The version of opset 18's time; a newer one would shut out older runtimes for nothing.
    if size_bytes > _INLINE_LIMIT_BYTES:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.save(model, path)
