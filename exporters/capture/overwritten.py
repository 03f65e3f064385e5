"""Buffers that ``forward`` fills with noise before it reads them, as layers of Bayesian networks keep their noise.

Nothing of an earlier call is left in such a buffer, so that it is no state: every call may have new memory for it.
"""

from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import fx

__all__ = ["renew_overwritten"]

aten = torch.ops.aten

_FILLS = (
    aten.normal_.default, aten.uniform_.default, aten.exponential_.default, aten.bernoulli_.float,
    aten.bernoulli_.Tensor, aten.copy_.default,
)  # fmt: skip
_WHOLE = (aten.detach.default, aten.alias.default)
"""Views of all of a tensor, that read nothing of it."""


def renew_overwritten(graph: fx.Graph) -> None:
    """Let each filling of such a buffer have new memory, and what reads the buffer later read the filling."""
    for node in list(graph.nodes):
        if node.op == "get_attr" and _filled_first(node):
            _renew(node)


def _filled_first(buffer: fx.Node) -> bool:
    """Whether the first that happens to its values is that noise takes the place of all of them."""
    views = {buffer}
    for node in buffer.graph.nodes:
        if not views.isdisjoint(node.all_input_nodes):
            if node.target not in _WHOLE:
                return _fills(node, views) and views.isdisjoint(node.args[1:])
            views.add(node)
    return False


def _fills(node: fx.Node, views: Collection[fx.Node]) -> bool:
    """Whether it gives all values of ``views`` new ones; a copy does with those of a tensor that is like the buffer."""
    if node.target not in _FILLS or node.args[0] not in views:
        return False
    if node.target is not aten.copy_.default:
        return True
    ours, theirs = (source.meta["val"] for source in cast(Sequence[fx.Node], node.args[:2]))
    return bool(ours.dtype == theirs.dtype and ours.shape == theirs.shape)


def _renew(buffer: fx.Node) -> None:
    views, filling = {buffer}, buffer
    for node in list(buffer.graph.nodes):
        if views.isdisjoint(node.all_input_nodes):
            continue
        if node.target in _WHOLE:
            views.add(node)
            continue
        # What a filling reads, as its probabilities, is the filling before it.
        present = {source: filling if source in views else source for source in node.all_input_nodes}
        args, kwargs = fx.map_arg((node.args, node.kwargs), present.__getitem__)
        if _fills(node, views):
            filling = node
            if node.target is aten.copy_.default:
                node.target, args = aten.clone.default, args[1:2]
            else:
                with buffer.graph.inserting_before(node):
                    memory = buffer.graph.call_function(aten.empty_like.default, (buffer,))
                memory.meta = dict(node.meta)
                args = (memory, *args[1:])
        node.args, node.kwargs = args, kwargs
