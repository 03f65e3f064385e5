"""A linear layer behind a dropout of many units, computed a piece of the units at a time.

Behind a convolution a row has thousands of units, and the masks and products of all its draws leave every cache before
they are used. Here a piece is drawn, multiplied and summed up while it is still there, and the whole never exists.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx

from deploykit import masks
from exporters.noise.mask_ops import Keys, pieces, unit_keys, words
from exporters.noise.sites import arguments
from exporters.rewrite.drawplan import MonteCarloPlan, Placed
from exporters.rewrite.layout import BatchAxis, symbolic_shape

__all__ = ["PIECE_UNITS", "Wide", "find_wide", "linear_of_dropped"]

aten = torch.ops.aten

PIECE_UNITS = 512
"""What is summed up at a time: four rows in 50 draws have 400 kB of words (``benchmarks.kernels`` has other sizes)."""

_DTYPES = (torch.float32, torch.float64)
"""In half precision a sum in pieces is rounded after each."""

_VIEWS = (aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten.squeeze.default)

Wide = tuple[Placed, frozenset[fx.Node]]
"""The site, and the nodes from it to the linear layer, which need not run."""


def find_wide(plan: MonteCarloPlan) -> Mapping[fx.Node, Wide]:
    """The linear layers that can be computed so, each with its site."""
    found: dict[fx.Node, Wide] = {}
    for placed in plan.sites:
        if _is_wide(plan, placed):
            *between, last = _chain(placed.node)
            if between and _is_linear_of(plan, last, between[-1], placed):
                found[last] = placed, frozenset(between)
    return found


def _is_wide(plan: MonteCarloPlan, placed: Placed) -> bool:
    """A dropout with its own mask, of values that are the same in every draw."""
    node = placed.node
    return (
        node.target is aten.dropout.default
        and node.meta["val"].dtype in _DTYPES
        and placed.units is not None
        and placed.units > PIECE_UNITS
        and node.args[0] not in plan.reached
        and plan.axes[node] == placed.axis == BatchAxis(dimension=0)
        and len(plan.passes.get(node, (node,))) == 1
    )


def _chain(node: fx.Node) -> Iterator[fx.Node]:
    """The node, and what is computed of it alone as long as that is one view after another; then the node behind."""
    yield node
    while len(node.users) == 1:
        (node,) = node.users
        yield node
        if node.target not in _VIEWS:
            return


def _is_linear_of(plan: MonteCarloPlan, last: fx.Node, dropped: fx.Node, placed: Placed) -> bool:
    """Whether ``last`` is a linear layer of ``dropped``, rows (batch, units), whose weights no draw reaches."""
    if last.target is not aten.linear.default or [dropped] != [arg for arg in last.args if arg is dropped]:
        return False
    given = arguments(last)
    weights = [given[name] for name in ("weight", "bias") if given[name] is not None]
    shape, ranks = symbolic_shape(dropped), [len(symbolic_shape(weight)) for weight in weights]
    return len(shape) == 2 and shape[1] == placed.units and ranks in ([2], [2, 1]) and not plan.reached & set(weights)


def linear_of_dropped(
    values: Tensor, rows: Keys, placed: Placed, weight: Tensor, bias: Tensor | None, *, draws: int
) -> Tensor:
    """``linear(dropout(values))`` for ``values`` (B, U): (T*B, features), draw-major."""
    p, total, start = float(placed.site.p or 0), values.new_zeros(()) if bias is None else bias, 0
    scaled = values * masks.scale(p)
    for piece in pieces(unit_keys(placed.site.index, scaled.shape[1], values.device), PIECE_UNITS):
        stop = start + piece[0].shape[-1]
        # Two dimensions only: torch cannot derive the strides of a product of more where their sizes are symbols.
        mask = (words(rows, piece) >= masks.threshold(p)).reshape(draws, -1).to(values.dtype)
        dropped = (mask * scaled[:, start:stop].reshape(1, -1)).reshape(-1, stop - start)
        total = torch.addmm(total, dropped, weight[:, start:stop].t())
        start = stop
    return total
