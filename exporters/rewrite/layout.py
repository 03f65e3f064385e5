"""Where the rows of the batch lie in a tensor of the graph.

Seen flat and row-major, every tensor that carries the batch is ``(outer, batch, inner)``: the batch may be the first
dimension (outer is 1), a later one (sequence-first), or folded with another, as attention folds heads into it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sympy
import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._sympy.functions import FloorDiv

from deploykit.errors import ExportError

__all__ = ["FIRST", "LAST", "BatchAxis", "Moved", "find_axis", "named_size", "symbolic_shape", "symbols_of", "takes"]

FIRST, LAST = 1, 2
"""Bits that say with which row of the inputs an element changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchAxis:
    """``dimension`` holds the batch; ``folded_outer`` tells that the rest of a folded dimension varies slower."""

    dimension: int
    folded_outer: bool = False

    def split(self, shape: Sequence[int], batch: int) -> tuple[int, int, int]:
        """(outer, batch, inner) of a tensor with this shape."""
        outer, inner = math.prod(shape[: self.dimension]), math.prod(shape[self.dimension + 1 :])
        rest = shape[self.dimension] // batch
        return (outer * rest, batch, inner) if self.folded_outer else (outer, batch, rest * inner)

    def row(self, shape: Sequence[int], batch: int) -> tuple[int, ...]:
        """The sizes of one row of a tensor with this shape, in the row-major order of its units."""
        return (*shape[: self.dimension], shape[self.dimension] // batch, *shape[self.dimension + 1 :])

    def tile(self, tensor: Tensor, batch: int, times: int) -> Tensor:
        """Repeat the rows ``times`` times, the repetition varying slower than the row."""
        shape = list(tensor.shape)
        outer, _, inner = self.split(shape, batch)
        shape[self.dimension] = shape[self.dimension] * times
        return tensor.reshape(outer, 1, batch, inner).expand(outer, times, batch, inner).reshape(shape)

    def select(self, tensor: Tensor, batch: int, times: int, index: int) -> Tensor:
        """The ``index``-th of the repetitions that ``tile`` makes."""
        shape = list(tensor.shape)
        outer, _, inner = self.split(shape, batch * times)
        shape[self.dimension] = shape[self.dimension] // times
        return tensor.reshape(outer, times, batch, inner).select(1, index).reshape(shape)

    def draws_first(self, tensor: Tensor, batch: int, times: int) -> Tensor:
        """(times, ...) of what ``tile`` made."""
        shape = list(tensor.shape)
        outer, _, inner = self.split(shape, batch * times)
        shape[self.dimension] = shape[self.dimension] // times
        return tensor.reshape(outer, times, batch, inner).transpose(0, 1).reshape(times, *shape)

    def draws_folded(self, tensor: Tensor, batch: int) -> Tensor:
        """The inverse of ``draws_first``."""
        times, *shape = tensor.shape
        outer, _, inner = self.split(shape, batch)
        shape[self.dimension] = shape[self.dimension] * times
        return tensor.reshape(times, outer, batch, inner).transpose(0, 1).reshape(shape)

    def place(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Lay ``rows`` (batch, units) out as a tensor of ``shape``, units in row-major order within a row."""
        if self.dimension == 0 and not self.folded_outer:
            return rows.reshape(shape)
        outer, batch, inner = self.split(shape, rows.shape[0])
        return rows.reshape(batch, outer, inner).transpose(0, 1).reshape(shape)


def symbolic_shape(node: fx.Node) -> tuple[Any, ...]:
    """The node's sizes as sympy expressions; empty for what is no tensor."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return ()
    sizes: list[int | torch.SymInt] = list(value.shape)
    return tuple(sympy.Integer(size) if isinstance(size, int) else _divided(size.node.expr) for size in sizes)


def _divided(size: Any) -> Any:
    """``(batch*steps**2)//steps``, which torch leaves as it stands, is ``batch*steps``."""
    return size.replace(FloorDiv, _quotient) if size.has(FloorDiv) else size


def _quotient(base: Any, divisor: Any) -> Any:
    whole = sympy.cancel(base / divisor)
    # Without a rest only where there is no fraction left, be it n/8 or batch/n.
    return whole if sympy.denom(sympy.together(whole)) == 1 else FloorDiv(base, divisor)


def symbols_of(node: fx.Node) -> set[Any]:
    """The symbols in the node's sizes."""
    return {symbol for size in symbolic_shape(node) for symbol in size.free_symbols}


def takes(node: fx.Node, symbol: Any) -> bool:
    """Whether the symbol is in the sizes of an argument."""
    return any(symbol in symbols_of(source) for source in node.all_input_nodes)


def named_size(size: Any, symbols: Mapping[str, Any]) -> str:
    """A size with the names of the dimensions: ``4*batch``."""
    # As symbols: sympy takes a bare text such as "N" for what it means by it.
    return str(size.subs({symbol: sympy.Symbol(name) for name, symbol in symbols.items()}))


class Moved(Protocol):
    """Tells, for a node, which of its elements changed when only one row of the inputs did, of ``batch`` rows.

    ``FIRST`` for row 0, ``LAST`` for the last one, both together for an element that changed with either.
    """

    batch: int

    def __call__(self, node: fx.Node) -> Tensor | None: ...


def find_axis(node: fx.Node, symbol: Any, moved: Moved) -> BatchAxis | None:
    """Where the batch lies in ``node``; None when its shape does not depend on the batch.

    ``moved`` decides the order within a folded dimension.

    Raises:
        ExportError: the batch appears in two dimensions, so that rows mix.
    """
    shape = symbolic_shape(node)
    carrying = [axis for axis, size in enumerate(shape) if symbol in size.free_symbols]
    if not carrying:
        return None
    if len(carrying) > 1:
        sizes = [named_size(size, {"batch": symbol}) for size in shape]
        raise ExportError(f"{node.name}: {sizes} carries the batch twice, so that its rows mix")
    (axis,) = carrying
    factor = sympy.simplify(shape[axis] / symbol)
    if symbol in factor.free_symbols:
        size = named_size(shape[axis], {"batch": symbol})
        if free_unbacked_symbols(node.meta["val"]):
            raise ExportError(
                f"{node.name}: dimension {axis} is {size}, of which some are picked by their values, as x[mask] and "
                "nonzero() do it. Compute for all and choose by a mask, as in torch.where(mask, x, 0.0)"
            )
        raise ExportError(
            f"{node.name}: dimension {axis} is {size}, which is not a multiple of the batch. Where other rows stand "
            "beside it, such as examples to compare with, call the layers once for the batch and once for these"
        )
    if factor == 1:
        return BatchAxis(dimension=axis)
    order = _is_outer(moved(node), axis, moved.batch)
    if order is None:
        raise ExportError(f"{node.name}: in dimension {axis} the batch is folded between two other dimensions")
    return BatchAxis(dimension=axis, folded_outer=order)


def _is_outer(changed: Tensor | None, axis: int, batch: int) -> bool | None:
    """Whether the rest of a folded dimension varies slower than the batch; None if a part of it does.

    With the batch varying slowest, the elements of a row are a block; else they are every ``batch``-th. Of the first
    and the last row together both cannot be true, even where a single element of each changes.
    """
    if changed is None:
        return False
    lines = changed.movedim(axis, 0).reshape(changed.shape[axis], -1)
    first, last = (((lines & bit) != 0).any(dim=1).nonzero().flatten() for bit in (FIRST, LAST))
    of_rows = ((0, first), (batch - 1, last))
    if all(bool((found // (len(lines) // batch) == row).all()) for row, found in of_rows):
        return False
    return True if all(bool((found % batch == row).all()) for row, found in of_rows) else None
