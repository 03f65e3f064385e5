"""Whether two captures compute the same."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["same_programs"]


def same_programs(one: torch.export.ExportedProgram, other: torch.export.ExportedProgram) -> bool:
    """Whether the outputs, and what is written on the way, come from the same operations in the same order."""
    return (
        _described(one.graph_module) == _described(other.graph_module)
        and _effects(one) == _effects(other)
        and _same_constants(one.constants, other.constants)
    )


def _effects(program: torch.export.ExportedProgram) -> list[tuple[str, str | None]]:
    return [(str(spec.kind), spec.target) for spec in program.graph_signature.output_specs]


def _same_constants(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        isinstance(value, Tensor) and isinstance(other[name], Tensor) and torch.equal(value, other[name])
        for name, value in one.items()
    )


def _described(module: fx.GraphModule) -> list[tuple[Any, ...]]:
    """The nodes that are needed, with their arguments, by place instead of by name; those of nested graphs too."""
    needed: set[fx.Node] = set()
    for node in reversed(module.graph.nodes):
        if node in needed or node.op in ("placeholder", "output") or node.is_impure():
            needed.update((node, *node.all_input_nodes))
    places = {node: place for place, node in enumerate(node for node in module.graph.nodes if node in needed)}
    found = []
    for node in places:
        nested = getattr(module, node.target, None) if node.op == "get_attr" else None
        target = node.target if node.op != "output" else ""
        inner = _described(nested) if isinstance(nested, fx.GraphModule) else []
        parts = fx.node.map_arg((node.args, node.kwargs), lambda part: f"%{places[part]}")
        found.append((node.op, str(target), repr(parts), inner))
    return found
