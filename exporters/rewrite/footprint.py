"""How much memory the draws of one row take in an exported graph."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from exporters.capture.graph import Captured
from exporters.rewrite.layout import symbolic_shape

__all__ = ["row_bytes"]


def row_bytes(captured: Captured, batch_name: str, sizes: Mapping[str, int]) -> int:
    """Bytes of the largest set of activations that are alive together, of one row in one draw.

    ``captured`` takes the draws as its dimension ``draws``. Counted is what has the size of draws times rows: what runs
    once per batch, and weights, are not. A view takes no memory. ``sizes`` are those of the other dynamic dimensions.
    """
    known = {captured.symbols[dimension]: size for dimension, size in {**sizes, batch_name: 1, "draws": 1}.items()}
    per_draw = frozenset(captured.symbols[name] for name in (batch_name, "draws"))
    nodes = list(captured.graph.nodes)
    owners = {node: _owner(node) for node in nodes}
    taken = {node: _size(node, per_draw, known) for node in nodes if owners[node] is node}
    last_use = _last_uses(nodes, owners)
    alive = most = 0
    for index, node in enumerate(nodes):
        alive += taken.get(node, 0)
        most = max(most, alive)
        alive -= sum(taken[owner] for owner in last_use.get(index, ()))
    return most


def _last_uses(nodes: list[fx.Node], owners: Mapping[fx.Node, fx.Node]) -> dict[int, list[fx.Node]]:
    """By the index of a node, whose memory is free after it."""
    last: dict[fx.Node, int] = {}
    for index, node in enumerate(nodes):
        for used in (node, *node.all_input_nodes):
            last[owners[used]] = index
    freed: dict[int, list[fx.Node]] = {}
    for owner, index in last.items():
        freed.setdefault(index, []).append(owner)
    return freed


def _owner(node: fx.Node) -> fx.Node:
    while node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
        aliases = [
            value
            for argument, value in zip(node.target._schema.arguments, node.args, strict=False)
            if argument.alias_info is not None and isinstance(value, fx.Node)
        ]
        if not aliases:
            break
        node = aliases[0]
    return node


def _size(node: fx.Node, per_draw: frozenset[Any], sizes: Mapping[Any, int]) -> int:
    """Bytes of one row in one draw; 0 where the shape does not grow with both."""
    shape = symbolic_shape(node)
    if not per_draw <= {symbol for size in shape for symbol in size.free_symbols}:
        return 0
    elements = math.prod(size.subs(sizes) for size in shape)
    return int(elements) * int(node.meta["val"].element_size())
