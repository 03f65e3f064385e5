"""Operations that hand every value on as it is, and the sizes of what they give."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from exporters.noise.sites import aten_name

__all__ = ["AS_THEY_LIE", "handed_on", "size_of", "sizes_of", "value_of"]

AS_THEY_LIE = frozenset({"alias", "clone", "contiguous", "detach", "to", "type_as"})
_ELSEWHERE = frozenset({
    "broadcast_to", "cat", "concat", "concatenate", "expand", "expand_as", "flatten", "flip", "hstack", "movedim",
    "moveaxis", "numpy_T", "permute", "ravel", "repeat", "reshape", "reshape_as", "squeeze", "stack", "swapaxes",
    "swapdims", "t", "tile", "transpose", "unflatten", "unsqueeze", "view", "view_as",
})  # fmt: skip
"""Operations whose result holds every value of their first argument, in the same places or in others."""

_EXPANDING = frozenset({"broadcast_to", "expand", "expand_as", "repeat", "tile"})


def handed_on(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments of which ``node`` holds every value as it is, each in at least one place of every batch of rows."""
    if aten_name(node) in AS_THEY_LIE or aten_name(node) in _ELSEWHERE:
        yield from (
            source for source in _first_argument(node) if _holds(node, source) and not _may_be_nowhere(node, source)
        )


def _first_argument(node: fx.Node) -> list[fx.Node]:
    """That of an operation, or those of one that joins several."""
    first = node.args[0] if node.args else ()
    return [source for source in (first if isinstance(first, Sequence) else (first,)) if isinstance(source, fx.Node)]


def _holds(node: fx.Node, source: fx.Node) -> bool:
    """Whether the type of ``node`` holds all values of that of ``source``; no integer holds those of fractions."""
    wide = value_of(node).dtype
    return node.target is not torch.ops.aten.view.dtype and wide == torch.promote_types(wide, value_of(source).dtype)


def _may_be_nowhere(node: fx.Node, source: fx.Node) -> bool:
    """Whether ``node`` expands ``source`` to a size that is 0, or could be while none of the source's is."""
    if aten_name(node) not in _EXPANDING:
        return False
    # Without a row there is nothing to be found.
    batch = sizes_of(next(each for each in node.graph.nodes if each.op == "placeholder"))[0]
    new = [size for size in sizes_of(node) if size not in (*sizes_of(source), batch)]
    return not all(isinstance(size, int) and size for size in new)


def value_of(node: fx.Node) -> Tensor:
    value: Tensor = node.meta["val"]
    return value


def size_of(node: fx.Node, dimension: int) -> int | None:
    """None where it is dynamic."""
    size = value_of(node).shape[dimension]
    return size if isinstance(size, int) else None


def sizes_of(node: fx.Node) -> list[Any]:
    """Dynamic ones as formulas: to compare the sizes themselves would compare those of the example."""
    return [size if isinstance(size, int) else size.node.expr for size in value_of(node).shape]
