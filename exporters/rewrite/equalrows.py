"""Rows that are cut from a tensor of the module's own in which all are the same, as of zeros to start with."""

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from exporters.capture.graph import Captured
from exporters.capture.reach import touched_by_writes
from exporters.noise.sites import arguments, aten_name, draws_random

__all__ = ["CUTS", "cuts_of_equal_rows"]

CUTS = {"slice", "narrow"}
"""Names of operations that take a part of a dimension, from one number to another."""


def cuts_of_equal_rows(captured: Captured) -> frozenset[fx.Node]:
    """The nodes that take so many of such rows as a size says, which is of no effect on the rows themselves."""
    written = touched_by_writes(captured.graph)
    cuts = (node for node in captured.graph.nodes if aten_name(node) in CUTS and len(node.all_input_nodes) > 1)
    return frozenset(node for node in cuts if _has_equal_rows(captured.module, node, written))


def _has_equal_rows(module: fx.GraphModule, node: fx.Node, written: Collection[fx.Node]) -> bool:
    """Of a buffer, or of what is made of one alone, as a part of it or its copy."""
    given = arguments(node)
    path = [given["input"]]
    while path[0].op == "call_function" and len(path[0].all_input_nodes) == 1 and not draws_random(path[0]):
        path.insert(0, path[0].all_input_nodes[0])
    if path[0].op != "get_attr" or any(each in written for each in (*path, node)):
        return False
    held: Tensor = operator.attrgetter(str(path[0].target))(module)
    for each in path[1:]:
        held = _applied(each, held)
    # Also of none, which have no first.
    return bool((held == torch.ops.aten.slice.Tensor(held, given["dim"], 0, 1)).all())


def _applied(node: fx.Node, value: Tensor) -> Tensor:
    """What the operation makes of it, also where it takes it in a list, as to join it with itself."""
    operation: Any = node.target
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda _: value)
    found: Tensor = operation(*args, **kwargs)
    return found
