"""Which nodes of a graph draws reach: what is computed from them, and memory that they are written to."""

import operator
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import fx

from exporters.noise.sites import arguments

__all__ = [
    "drop_unseen_writes",
    "kept_state",
    "needed_for",
    "owner_of",
    "reached_by",
    "touched_by_writes",
    "writes_seen",
    "written",
]


def reached_by(graph: fx.Graph, sites: Sequence[fx.Node]) -> frozenset[fx.Node]:
    """The sites, everything computed from them, and every tensor that such values are written into and read from."""
    seen = writes_seen(graph)
    found: set[fx.Node] = set(sites)
    before = 0
    while len(found) > before:
        before = len(found)
        for node in graph.nodes:
            if node.op != "output" and any(source in found for source in node.all_input_nodes):
                found.add(node)
        for node in found & seen:
            found.update(map(owner_of, written(node)))
    return frozenset(found)


def writes_seen(graph: fx.Graph) -> frozenset[fx.Node]:
    """Operations in place that are seen otherwise than by their result."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    owners = {node: owner_of(node) for node in graph.nodes}
    aliases: dict[fx.Node, list[fx.Node]] = {}
    for node, owner in owners.items():
        aliases.setdefault(owner, []).append(node)
    return frozenset(
        node
        for node in graph.nodes
        for target in written(node)
        if any(
            order[user] > order[node]
            for alias in aliases[owners[target]]
            if order[alias] < order[node]
            for user in alias.users
        )
    )


def touched_by_writes(graph: fx.Graph) -> frozenset[fx.Node]:
    """Every node that views, reads or writes memory which some operation writes to."""
    owners = {node: owner_of(node) for node in graph.nodes}
    changed = {owners[target] for node in graph.nodes for target in written(node)}
    return frozenset(
        node for node in graph.nodes if any(owners[other] in changed for other in (node, *node.all_input_nodes))
    )


def owner_of(node: fx.Node) -> fx.Node:
    """The node that made the memory which ``node`` views, or may view."""
    while (source := _viewed(node)) is not None:
        node = source
    return node


def _viewed(node: fx.Node) -> fx.Node | None:
    if node.target is operator.getitem:
        return node.all_input_nodes[0]
    return next((value for value, _ in _aliased(node)), None)


def written(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments that the node writes into."""
    return (value for value, is_write in _aliased(node) if is_write)


def _aliased(node: fx.Node) -> Iterator[tuple[fx.Node, bool]]:
    """The arguments whose memory the result views or the operation writes to (``out=`` too), and whether it writes."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or _converts(node):
        return
    for argument, value in zip(node.target._schema.arguments, arguments(node).values(), strict=True):
        if argument.alias_info is not None:
            # A list of tensors, too, as ``_foreach_mul_`` writes to.
            listed = value if isinstance(value, Sequence) else (value,)
            yield from ((one, argument.alias_info.is_write) for one in listed if isinstance(one, fx.Node))


def _converts(node: fx.Node) -> bool:
    """Whether ``to`` makes another type, and so new memory; its schema says only that it may give back its input."""
    if node.target._schema.name != "aten::to":  # type: ignore[union-attr]
        return False
    dtypes = {each.meta["val"].dtype for each in (node, *node.all_input_nodes) if "val" in each.meta}
    return len(dtypes) > 1


def needed_for(
    graph: fx.Graph, outputs: Collection[fx.Node], taken: Callable[[fx.Node], Collection[fx.Node]]
) -> frozenset[fx.Node]:
    """The nodes from which ``outputs`` come, also by what is written into memory that they are read from.

    ``taken`` gives the arguments that a node is made of.
    """
    owners = {node: owner_of(node) for node in graph.nodes}
    found, before = set(outputs), 0
    while len(found) > before:
        before = len(found)
        memory = {owners[node] for node in found}
        found |= {node for node in graph.nodes if any(owners[target] in memory for target in written(node))}
        for node in reversed(graph.nodes):
            if node in found:
                found.update(taken(node))
    return frozenset(found)


def drop_unseen_writes(graph: fx.Graph) -> None:
    """Erase what no output depends on, also operations that write into memory which no output is read from."""
    outputs = [node for node in graph.nodes if node.op == "output"]
    needed = needed_for(graph, outputs, lambda node: node.all_input_nodes)
    for node in reversed(graph.nodes):
        if node not in needed and node.op != "placeholder":
            graph.erase_node(node)


def kept_state(graph: fx.Graph) -> list[str]:
    """The buffers and parameters that the graph writes to, so that one call would change the next."""
    owners = [owner_of(target) for node in graph.nodes for target in written(node)]
    return sorted({str(owner.target) for owner in owners if owner.op == "get_attr"})
