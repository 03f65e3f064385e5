"""Values that differ from draw to draw but belong to no row: a weight, or a constant, behind a dropout.

Such a value carries the draws as a dimension in front: (T, ...). It cannot be folded into the batch, so an operation on
it needs a form for T values at once. Here every tensor argument comes with that dimension, of size 1 where the value is
the same in all draws.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from deploykit.errors import ExportError
from exporters.noise.sites import module_of

__all__ = ["NotBatchedError", "call_per_draw"]

aten = torch.ops.aten

# Element by element, although torch does not tag them so.
_COPIES = (
    aten.to.dtype, aten.to.dtype_layout, aten.to.other, aten.clone.default, aten.contiguous.default, aten.alias.default,
    aten.detach.default,
)  # fmt: skip


class NotBatchedError(ExportError):
    """An operation cannot be run for many draws at once; one draw after the other it can."""


def call_per_draw(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The operation of ``node`` for each draw: tensors (T or 1, ...) in, (T, ...) out.

    Raises:
        NotBatchedError: there is no form of this operation for T values at once.
    """
    if node.target in _COPIES or torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return _pointwise(node.target, args, kwargs)
    rule = _RULES.get(node.target)
    if rule is None or kwargs:
        raise NotBatchedError(
            f"{module_of(node)}: {node.target} takes a weight or a constant behind a dropout, which is another one in "
            "every draw"
        )
    found: Tensor = rule(*args)
    return found


def _pointwise(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    rank = max(value.ndim for value in (*args, *kwargs.values()) if isinstance(value, Tensor))

    def aligned(value: Any) -> Any:
        return _align(value, rank) if isinstance(value, Tensor) else value

    found: Tensor = operation(*map(aligned, args), **{key: aligned(value) for key, value in kwargs.items()})
    return found


def _align(value: Tensor, rank: int) -> Tensor:
    """Broadcasting aligns dimensions at the end, so the missing ones go between the draws and the rest."""
    return value.reshape(value.shape[0], *[1] * (rank - value.ndim), *value.shape[1:])


def _matmul(first: Tensor, second: Tensor) -> Tensor:
    """As in torch, a vector is a row in front of a matrix and a column behind one."""
    columns = second if second.ndim > 2 else second.unsqueeze(2)
    rank = max(first.ndim, columns.ndim)
    product = torch.matmul(_align(first, rank), _align(columns, rank))
    product = product if first.ndim > 2 else product.squeeze(-2)
    return product if second.ndim > 2 else product.squeeze(-1)


def _linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = _matmul(values, weight.transpose(1, 2))
    return product if bias is None else product + _align(bias, product.ndim)


def _addmm(bias: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return _align(bias, 3) + torch.matmul(first, second)


def _outer(column: Tensor, row: Tensor) -> Tensor:
    return column.unsqueeze(2) * row.unsqueeze(1)


def _embedding(weight: Tensor, ids: Tensor, *_options: Any) -> Tensor:
    # Options are about gradients. The ids are those of the inputs, the same in every draw.
    return weight.index_select(1, ids.reshape(-1)).reshape(weight.shape[0], *ids.shape[1:], weight.shape[-1])


def _from_the_end(operation: Callable[..., Tensor], count: int = 1, *, new: int = 0) -> Callable[..., Tensor]:
    """For an operation that names ``count`` dimensions: counted from the end, they stay the same ones."""

    def call(values: Tensor, *args: Any) -> Tensor:
        rank = values.ndim - 1 + new
        dimensions = [axis if axis < 0 else axis - rank for axis in args[:count]]
        return operation(values, *dimensions, *args[count:])

    return call


def _reshape(values: Tensor, sizes: Sequence[int]) -> Tensor:
    return values.reshape(values.shape[0], *sizes)


def _expand(values: Tensor, sizes: Sequence[int]) -> Tensor:
    return _align(values, len(sizes) + 1).expand(values.shape[0], *sizes)


def _expand_as(values: Tensor, other: Tensor) -> Tensor:
    return _expand(values, other.shape[1:])


def _permute(values: Tensor, order: Sequence[int]) -> Tensor:
    rank = values.ndim - 1
    return values.permute(0, *(axis % rank + 1 for axis in order))


def _repeat(values: Tensor, repeats: Sequence[int]) -> Tensor:
    return _align(values, len(repeats) + 1).repeat(1, *repeats)


def _t(values: Tensor) -> Tensor:
    return values.transpose(1, 2) if values.ndim == 3 else values


_RULES: Mapping[Any, Callable[..., Tensor]] = {
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.addmm.default: _addmm,
    aten.outer.default: _outer,
    aten.ger.default: _outer,
    aten.embedding.default: _embedding,
    aten.t.default: _t,
    aten.numpy_T.default: _t,
    aten.permute.default: _permute,
    aten.view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.expand.default: _expand,
    aten.expand_as.default: _expand_as,
    aten.repeat.default: _repeat,
    aten.transpose.int: _from_the_end(aten.transpose.int, 2),
    aten.unsqueeze.default: _from_the_end(aten.unsqueeze.default, new=1),
    aten.squeeze.dim: _from_the_end(aten.squeeze.dim),
    aten.select.int: _from_the_end(aten.select.int),
    aten.slice.Tensor: _from_the_end(aten.slice.Tensor),
    aten.softmax.int: _from_the_end(aten.softmax.int),
}
