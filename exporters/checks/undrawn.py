"""What a capture decides beside its draws: such operations of each module, to compare two modes by.

Numbers do not tell: code that one mode has and the other does not, as a ``clamp``, may leave an example as it is.
"""

import hashlib
import operator
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import guard_or_true

from exporters.capture.graph import Captured
from exporters.noise.kinds import KINDS
from exporters.noise.noise_ops import NOISE
from exporters.noise.sites import arguments, aten_name, module_of
from exporters.rewrite.simplify import simplify

__all__ = ["difference"]

_BY_VALUES = {
    "abs", "amax", "amin", "argmax", "argmin", "argsort", "bitwise_and", "bitwise_not", "bitwise_or", "bucketize",
    "ceil", "celu", "clamp", "clamp_max", "clamp_min", "clip", "cummax", "cummin", "elu", "eq", "fix", "floor",
    "floor_divide", "fmax", "fmin", "frac", "ge", "gt", "hardshrink", "hardsigmoid", "hardswish", "hardtanh",
    "heaviside", "index", "isfinite", "isinf", "isnan", "kthvalue", "le", "leaky_relu", "logical_and", "logical_not",
    "logical_or", "lt", "masked_fill", "masked_scatter", "max", "maximum", "median", "min", "minimum", "mode",
    "nan_to_num", "ne", "prelu", "relu", "relu6", "remainder", "round", "searchsorted", "selu", "sgn", "sign",
    "softshrink", "sort", "threshold", "topk", "trunc", "where",
}  # fmt: skip
"""Names of operations that go another way by values. Elsewhere what agrees in random numbers agrees in all."""

_OFF = {"train": False, "dropout": 0.0, "dropout_p": 0.0}


def difference(
    captured: Captured, evaluation: Captured, makers: Collection[str], *, inside: bool = False
) -> str | None:
    """What only one of two captures computes, in words; None where it is the same but for the draws.

    Not counted is what the ``makers`` of noise compute, which may have no form without it, and the modules ``inside``
    of them if asked.
    """
    ours, theirs = _operations_off(captured), _operations_off(evaluation)
    for mode, more in (("training mode", ours - theirs), ("evaluation", theirs - ours)):
        for module, name, given in more:
            # What evaluation alone computes does not come of the noise.
            made = module in makers and (inside or mode != "evaluation")
            if not made and not (inside and _is_inside(module, makers)):
                return f"{module} computes {name}({given}) in {mode} only"
    return None


def _is_inside(module: str, makers: Collection[str]) -> bool:
    return "(root)" in makers or any(module.startswith(f"{maker}.") for maker in makers)


def _operations_off(captured: Captured) -> Counter[tuple[str, str, str]]:
    graph = fx.Graph()
    graph.output(graph.graph_copy(captured.graph, {}))
    module = fx.GraphModule(captured.module, graph)
    for node in graph.nodes:
        if node.target in NOISE:
            node.target = _noise
        elif node.target in KINDS:
            _switch_off(node)
    # What a loop of the user's computes in every draw, it computes once without them.
    simplify(module)
    graph.eliminate_dead_code()
    return _operations(module, captured.program.state_dict)


def _noise(*given: Any, **_named: Any) -> Any:
    """Stands for a draw of noise, of which two are the same when they are off."""
    return given


def _switch_off(node: fx.Node) -> None:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    node.args = tuple(_OFF.get(name, value) for name, value in zip(names, node.args, strict=False))
    node.kwargs = {name: _OFF.get(name, value) for name, value in node.kwargs.items()}


def _operations(module: fx.GraphModule, weights: Mapping[str, Any]) -> Counter[tuple[str, str, str]]:
    """How often each module computes what, with which arguments but for values of the graph."""
    return Counter(
        (module_of(node), str(node.target), ", ".join(map(str, _given(node, module, weights))))
        for node in module.graph.nodes
        if node.op == "call_function" and _decides(node)
    )


def _decides(node: fx.Node) -> bool:
    """Whether it goes another way by values or by sizes, or has a block that may."""
    name, value = aten_name(node), node.meta.get("val")
    if not name:
        return node.target is not operator.getitem
    if name == "slice":  # One that left out nothing of the sizes tried may leave out something of others.
        is_all = arguments(node)["end"] in (None, sys.maxsize)
        sizes = zip(node.meta["val"].shape, node.all_input_nodes[0].meta["val"].shape, strict=True)
        return not is_all and all(guard_or_true(left == given) for left, given in sizes)
    return name.rstrip("_") in _BY_VALUES and not _only_mends(node, value)


def _only_mends(node: fx.Node, value: Any) -> bool:
    """Whether it changes only numbers that are not finite, or nearly: transformers' layers do it in training alone."""
    if aten_name(node) != "clamp" or not value.is_floating_point():
        return aten_name(node) == "nan_to_num"
    given, most = arguments(node), torch.finfo(value.dtype).max
    limits = [given[name] for name in ("min", "max") if given[name] is not None]
    return all(isinstance(limit, float) and abs(limit) > 0.98 * most for limit in limits)


def _given(node: fx.Node, module: fx.GraphModule, weights: Mapping[str, Any]) -> tuple[Any, ...]:
    def shown(part: fx.Node) -> str:
        if part.op != "get_attr" or part.target in weights:
            return str(part.target) if part.op == "get_attr" else "..."
        return _constant(operator.attrgetter(str(part.target))(module), weights)

    if not isinstance(node.target, torch._ops.OpOverload):
        return (*fx.map_arg(node.args, shown), *fx.map_arg(tuple(node.kwargs.items()), shown))
    # Whether an argument is written out where it is the default depends on what it was before.
    defaults = [argument.default_value for argument in node.target._schema.arguments]
    given = zip(arguments(node).items(), defaults, strict=True)
    return tuple(f"{name}={fx.map_arg(value, shown)}" for (name, value), default in given if value != default)


def _constant(value: Any, weights: Mapping[str, Any]) -> str:
    """By what it holds: its name is a number that tells how many there were before."""
    if isinstance(value, fx.GraphModule):
        return str(sorted(_operations(value, weights).items()))
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return type(value).__name__
    held = value.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    return f"{value.dtype}{list(value.shape)}:{hashlib.sha256(held).hexdigest()[:16]}"
