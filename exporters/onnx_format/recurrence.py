"""``aten::rnn_tanh`` and ``aten::rnn_relu`` as ONNX's RNN, which torch's exporter writes out step by step.

Written out, the number of steps of the example would be fixed. An LSTM with projections has no ONNX form.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from deploykit.errors import ExportError
from exporters.capture.graph import Captured, own_name
from exporters.noise.sites import arguments, module_of

__all__ = ["recurrent_translations", "refuse_projections"]


def recurrent_translations() -> Mapping[Any, Callable[..., Any]]:
    """What ``torch.onnx.export`` takes as ``custom_translation_table``."""

    def rnn(activation: str) -> Callable[..., Any]:
        def function(
            values: Any,
            hidden: Any,
            params: Sequence[Any],
            has_biases: bool,
            num_layers: int,
            dropout: float,  # noqa: ARG001 - drawn outside of the operation
            train: bool,  # noqa: ARG001
            bidirectional: bool,
            batch_first: bool,
        ) -> tuple[Any, Any]:
            return _layers(activation, values, hidden, params, has_biases, num_layers, bidirectional, batch_first)

        return function

    aten = torch.ops.aten
    return {aten.rnn_tanh.input: rnn("Tanh"), aten.rnn_relu.input: rnn("Relu")}


def _layers(
    activation: str,
    values: Any,
    hidden: Any,
    params: Sequence[Any],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Any, Any]:
    """Outputs (steps, batch, directions * hidden), or batch first, and the last states (layers * directions, ...)."""
    from onnxscript import opset18

    op: Any = opset18
    ways, each = (2, "bidirectional") if bidirectional else (1, "forward")
    per_way = 4 if has_biases else 2
    values = op.Transpose(values, perm=[1, 0, 2]) if batch_first else values
    ends = []
    for layer in range(num_layers):
        first = layer * ways
        own = [params[(first + way) * per_way : (first + way + 1) * per_way] for way in range(ways)]
        weights, again = (_stacked(op, [[way[index]] for way in own]) for index in (0, 1))
        biases = _stacked(op, [[way[2], way[3]] for way in own]) if has_biases else None
        start = op.Slice(hidden, _vector(op, first), _vector(op, first + ways), _vector(op, 0))
        steps, end = op.RNN(
            values, weights, again, biases, None, start,
            activations=[activation] * ways, direction=each, hidden_size=int(hidden.shape[-1]),
        )  # fmt: skip
        # (steps, directions, batch, hidden) becomes (steps, batch, directions * hidden).
        values = op.Reshape(op.Transpose(steps, perm=[0, 2, 1, 3]), op.Constant(value_ints=[0, 0, -1]))
        ends.append(end)
    values = op.Transpose(values, perm=[1, 0, 2]) if batch_first else values
    return values, ends[0] if num_layers == 1 else op.Concat(*ends, axis=0)


def _stacked(op: Any, parts: Sequence[Sequence[Any]]) -> Any:
    """The weights of each direction, its parts one after the other, along a new first axis."""
    rows = [op.Unsqueeze(_joined(op, part), _vector(op, 0)) for part in parts]
    return rows[0] if len(rows) == 1 else op.Concat(*rows, axis=0)


def _joined(op: Any, parts: Sequence[Any]) -> Any:
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)


def _vector(op: Any, value: int) -> Any:
    return op.Constant(value_ints=[value])


def refuse_projections(captured: Captured) -> None:
    """ONNX's LSTM has one size for hidden and cell state; torch's exporter writes a file that fails when it runs.

    Raises:
        ExportError: an LSTM with ``proj_size``, by its name.
    """
    for node in captured.all_nodes:
        if node.target is torch.ops.aten.lstm.input:
            hidden, cell = (state.meta["val"].shape[-1] for state in arguments(node)["hx"])
            if hidden != cell:
                raise ExportError(
                    f"{_owner(node)}: an LSTM with proj_size={hidden} has no ONNX form; export with --format "
                    "torchscript, or project behind the LSTM"
                )


def _owner(node: Any) -> str:
    """The module that a recurrent network's weights belong to."""
    weight = node.args[2][0]
    return own_name(weight.target).rpartition(".")[0] if weight.op == "get_attr" else module_of(node)
