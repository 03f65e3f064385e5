"""Find every place in a captured graph where randomness enters; refuse the kinds that are not supported.

What counts is what the graph does, not the class of a module: an operation that torch tags as drawing random numbers
is a site when its arguments make it draw.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import traceback as node_meta

from exporters.noise.kinds import KINDS, probability, site_count

__all__ = [
    "RECURRENT", "SWITCHED", "Draw", "arguments", "aten_name", "call_with", "draws_random", "find_draws", "made_for",
    "masks_asked", "module_of", "operation_of", "site_name",
]  # fmt: skip

SWITCHED = {
    "dropout", "dropout_", "feature_dropout", "feature_dropout_",
    "alpha_dropout", "alpha_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_",
}  # fmt: skip
"""Names of the operations with ``p`` and ``train``, which give back their input when they are off."""

_OPENED_BY = {
    "wrap_with_set_grad_enabled": " of torch.enable_grad",
    "cond": " of torch.cond",
}

_ROOT = "(root)"

_MADE_FOR = "deploykit.module"

RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
"""Names of the operations that run a recurrent network over all of its steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """A node that draws random numbers. ``kind`` is None where no rewrite exists, ``p`` where no unit is dropped."""

    node: fx.Node
    module: str
    operation: str
    kind: str | None
    p: float | None


def find_draws(graph: fx.Graph) -> list[Draw]:
    """Every node that really draws, in the order of execution; then those in blocks, as of a condition, of no kind."""
    found = [_describe(node) for node in graph.nodes if draws_random(node)]
    for block, opener in _blocks(graph):
        opened_by = _OPENED_BY.get(str(opener.target), "") if opener else ""
        for draw in (_describe(node) for node in block.nodes if draws_random(node)):
            # In the branches of a condition the modules are lost, so that it is the one with the condition.
            module = module_of(opener) if opener and draw.module == _ROOT else draw.module
            operation = f"{draw.operation} in a block{opened_by}"
            found.append(replace(draw, module=module, operation=operation, kind=None, p=None))
    return found


def _blocks(graph: fx.Graph) -> list[tuple[fx.Graph, fx.Node | None]]:
    """The graphs inside that of a module, each with the node of the outermost that runs it."""
    parts = [part for part in (graph.owning_module or nn.Module()).modules() if isinstance(part, fx.GraphModule)]
    opened: dict[Any, fx.Node] = {}
    for part in parts:
        for node in part.graph.nodes:
            block = getattr(part, str(node.target), None) if node.op == "get_attr" else None
            for user in node.users if isinstance(block, fx.GraphModule) else ():
                opened[block] = opened.get(part, user)
    return [(part.graph, opened.get(part)) for part in parts if part.graph is not graph]


def masks_asked(graph: fx.Graph) -> Iterator[tuple[fx.Node, str, float | None]]:
    """(node, kind, p) of every mask that the graph takes, in the order of execution."""
    for node in graph.nodes:
        if draws_random(node) and node.target in KINDS:
            given, kind = arguments(node), KINDS[node.target]
            yield from [(node, kind, probability(kind, given))] * site_count(kind, given)


def _describe(node: fx.Node) -> Draw:
    operation = node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
    given, kind = arguments(node), KINDS.get(node.target)
    if given.get("generator") is not None:
        # Its state is the module's own, and no function of the row.
        operation, kind = f"{operation}(generator=)", None
    elif isinstance(node.meta.get("val"), Tensor) and node.meta["val"].is_complex():
        operation, kind = f"{operation} of complex numbers", None
    p = probability(kind, given) if kind is not None else None
    return Draw(node=node, module=module_of(node), operation=operation, kind=kind, p=p)


def draws_random(node: fx.Node) -> bool:
    """Whether the node draws random numbers with the arguments that it has."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    given, name = arguments(node), node.target._schema.name.removeprefix("aten::")
    if name in SWITCHED:
        return bool(given["train"]) and given["p"] != 0
    if name in RECURRENT:
        # It drops what one layer gives to the next, so a single layer draws nothing.
        return bool(given["train"]) and given["dropout"] != 0 and given["num_layers"] > 1
    if name.startswith("rrelu"):
        return bool(given["training"])
    return bool(given.get("dropout_p", 1) != 0)


def arguments(node: fx.Node) -> dict[str, Any]:
    """The node's arguments by name, in the order of the operation's schema, defaults included.

    The first argument of dropouts is called ``input`` throughout, although those that write in place call it ``self``.
    """
    schema = _schema(node.target)
    given = dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs
    values = {argument.name: given.get(argument.name, argument.default_value) for argument in schema}
    return {"input" if name == "self" else name: value for name, value in values.items()}


def call_with(operation: Any, given: Mapping[str, Any]) -> Any:
    """Call an operation with arguments as ``arguments`` gives them."""
    schema = _schema(operation)
    values = list(given.values())
    positional = [value for value, argument in zip(values, schema, strict=True) if not argument.kwarg_only]
    named = {argument.name: value for value, argument in zip(values, schema, strict=True) if argument.kwarg_only}
    return operation(*positional, **named)


def _schema(operation: Any) -> Any:
    return operation._schema.arguments


def module_of(node: fx.Node) -> str:
    """The qualified name of the innermost module whose code made this node; the root is ``(root)``."""
    made_for = (node.meta.get("custom") or {}).get(_MADE_FOR)
    if made_for:
        return str(made_for)
    stack = node.meta.get("nn_module_stack") or {}
    names = [str(path) for path, _ in stack.values() if not str(path).startswith("_empty_nn_module_stack")]
    name = names[-1] if names else ""
    # The user's module is a child of the entry wrapper, which in a block has one around it too.
    return site_name(name.removeprefix("_export_root").removeprefix("."))


def site_name(name: str) -> str:
    """How sites call a submodule of the entry, in which the user's module is ``module``; that itself is ``(root)``."""
    return name.removeprefix("module").removeprefix(".") or _ROOT


@contextmanager
def made_for(node: fx.Node) -> Iterator[None]:
    """What is captured meanwhile is the work of the module that made ``node``, whoever calls the operations now."""
    with node_meta.preserve_node_meta(), node_meta.annotate({_MADE_FOR: module_of(node)}):
        yield


def aten_name(node: fx.Node) -> str:
    """``embedding`` for ``aten.embedding.default``; empty for what is no operation of ATen."""
    is_operation = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten"
    return node.target._schema.name.removeprefix("aten::") if is_operation else ""  # type: ignore[union-attr]


def operation_of(node: fx.Node) -> str:
    """``linear`` for ``aten.linear.default``; ``output`` for what the graph gives back."""
    target = node.target
    return target._schema.name.rpartition("::")[2] if isinstance(target, torch._ops.OpOverload) else node.name
