"""Bring a captured graph into the form that the rewrite works best on, without changing what it computes.

What a user's loop computes again in every pass is merged into one, so that it runs once. For that, operations in place
become their functional forms where nobody looks at the memory they write to.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from exporters.capture.reach import owner_of, touched_by_writes, writes_seen
from exporters.noise.sites import SWITCHED, aten_name, draws_random

__all__ = ["comparable", "simplify"]


def simplify(module: fx.GraphModule) -> None:
    """Drop inactive dropouts, make writes functional where that is the same, and merge duplicates."""
    _drop_inactive(module.graph)
    _join_plainly(module.graph)
    _cast_plainly(module.graph)
    _without_writes(module.graph)
    _merge_duplicates(module.graph)
    module.recompile()


def _drop_inactive(graph: fx.Graph) -> None:
    """Dropouts that are off give back their input; without them, equal computations are seen to be equal."""
    for node in graph.nodes:
        if aten_name(node) in SWITCHED and not draws_random(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _join_plainly(graph: fx.Graph) -> None:
    """``vstack`` of what has two dimensions or more is ``cat``; ONNX would loop over a sequence for it."""
    for node in graph.nodes:
        if node.target is torch.ops.aten.vstack.default and all(n.meta["val"].ndim > 1 for n in node.all_input_nodes):
            node.target = torch.ops.aten.cat.default


def _cast_plainly(graph: fx.Graph) -> None:
    """``x.type_as(y)`` takes nothing of ``y`` but its type, and so nothing of its rows."""
    for node in graph.nodes:
        if node.target is torch.ops.aten.type_as.default:
            node.target, node.args = torch.ops.aten.to.dtype, (node.args[0], node.meta["val"].dtype)


def _without_writes(graph: fx.Graph) -> None:
    seen = writes_seen(graph)
    for node in graph.nodes:
        # What is kept in the module is state, which is refused elsewhere, and must not vanish here.
        keep = node in seen or owner_of(node).op == "get_attr"
        functional = None if keep else _functional_form(node)
        if functional is not None:
            node.target = functional


def _functional_form(node: fx.Node) -> Any:
    """The operation that gives the same result without writing: ``aten.relu`` for ``aten.relu_``; None if none does."""
    name, target = aten_name(node), node.target
    if not name.endswith("_") or (name not in SWITCHED and torch.Tag.pointwise not in target.tags):  # type: ignore[union-attr]
        return None
    dtypes = {source.meta["val"].dtype for source in node.all_input_nodes if isinstance(source.meta.get("val"), Tensor)}
    # Mixed dtypes would be promoted, which an operation in place does not do.
    is_random = name not in SWITCHED and torch.Tag.nondeterministic_seeded in target.tags  # type: ignore[union-attr]
    packet = getattr(torch.ops.aten, name[:-1], None) if len(dtypes) == 1 and not is_random else None
    forms = (getattr(packet, form) for form in packet.overloads()) if packet else ()
    # By what it takes: pow.Scalar, unlike pow_.Scalar, is the power of a number.
    return next((form for form in forms if _taken_by(form) == _taken_by(target)), None)


def _taken_by(operation: Any) -> list[str]:
    return [str(argument.type) for argument in operation._schema.arguments]


def _merge_duplicates(graph: fx.Graph) -> None:
    """Let every computation that gives the same value be made once; what draws random numbers is never the same."""
    # What shares memory that is written to may be the same computation and still another value.
    written = touched_by_writes(graph)
    first: dict[Hashable, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr") or node in written or draws_random(node):
            continue
        same = first.setdefault((node.op, node.target, comparable(node.args, {}), comparable(node.kwargs, {})), node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def comparable(value: Any, alike: Mapping[fx.Node, fx.Node]) -> Hashable:
    """Arguments as something to compare, with nodes by those that they are ``alike``; 1, 1.0 and True are different."""
    if isinstance(value, fx.Node):
        return alike.get(value, value)
    if isinstance(value, (tuple, list)):
        return tuple(comparable(item, alike) for item in value)
    if isinstance(value, dict):
        return tuple((key, comparable(item, alike)) for key, item in sorted(value.items()))
    return type(value).__name__, repr(value)
