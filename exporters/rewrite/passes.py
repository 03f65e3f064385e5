"""Find the passes of a loop that a user wrote around dropouts, so that all of them run as one batch.

Fifty passes ``model(drop(x))`` are captured as fifty copies of one computation that differ only in the site. Nodes that
correspond to each other in all passes form a group.
"""

from collections.abc import Collection, Hashable, Mapping

from torch import fx

from exporters.capture.reach import touched_by_writes
from exporters.rewrite.simplify import comparable

__all__ = ["FEWEST", "Group", "find_passes"]

FEWEST = 4
"""Fewer passes than this run one by one: what they would gain together is lost in putting them together."""

Group = tuple[fx.Node, ...]
"""Corresponding nodes, in the order of the passes."""


def find_passes(graph: fx.Graph, reached: Collection[fx.Node]) -> dict[fx.Node, Group]:
    """The group of every node that belongs to one.

    ``reached`` holds the nodes that depend on a draw. What has to do with memory that is written to is left alone.
    """
    alike: dict[Hashable, list[fx.Node]] = {}
    first: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node in reached:
            nodes = alike.setdefault((node.target, comparable(node.args, first), comparable(node.kwargs, first)), [])
            nodes.append(node)
            first[node] = nodes[0]
    groups = {node: tuple(nodes) for nodes in alike.values() if len(nodes) >= FEWEST for node in nodes}
    return _consistent(groups, reached, touched_by_writes(graph))


def _consistent(
    groups: dict[fx.Node, Group], reached: Collection[fx.Node], written: Collection[fx.Node]
) -> dict[fx.Node, Group]:
    """Leave out, again and again, the groups that do not take their inputs pass by pass from other groups."""
    while True:
        wrong = {
            group
            for group in groups.values()
            if any(node in written for node in group) or not _aligned(group, groups, reached)
        }
        if not wrong:
            return groups
        groups = {node: group for node, group in groups.items() if group not in wrong}


def _aligned(group: Group, groups: Mapping[fx.Node, Group], reached: Collection[fx.Node]) -> bool:
    if isinstance(group[0].meta.get("val"), (tuple, list)):
        # Operations with several results are not taken apart.
        return False
    inputs = [node.all_input_nodes for node in group]
    if len({len(each) for each in inputs}) > 1:
        return False
    for sources in zip(*inputs, strict=True):
        same = len(set(sources)) == 1 and (sources[0] not in reached or sources[0] not in groups)
        if not same and groups.get(sources[0]) != sources:
            return False
    return True
