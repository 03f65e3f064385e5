"""Rows that are read or written at places which values decide: no check with a few random rows need show it.

``hidden[torch.arange(batch), last]`` reads each row at its own place. ``hidden[nearest]`` reads other rows, and a mask
such as ``hidden[hidden[:, 0] > 0]`` some of them.
"""

import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from exporters.noise.sites import arguments, operation_of
from exporters.rewrite.drawplan import MonteCarloPlan
from exporters.rewrite.layout import symbolic_shape, symbols_of

__all__ = ["VALUELESS", "counting_rows", "numbers_of_rows", "stay_exact", "where_values_say"]

VALUELESS = {"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like"}
"""Names of operations that take of a tensor what it is, and not its values."""

_LIKE = {"expand_as", "view_as", "reshape_as"}
"""Names of operations that take of their second argument its shape alone."""

_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool)

_CUTS = {"slice", "narrow"}
"""Names of operations that take a part of a dimension, from one number to another."""

_PARTED = {
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "repeat_interleave",
}  # fmt: skip
"""Names of operations whose single number says in how many parts, of which each may be a row, or how often."""

_ALONG = {
    "index_select", "gather", "index_add", "index_copy", "index_fill", "index_reduce", "scatter", "scatter_add",
    "scatter_reduce",
}  # fmt: skip
"""Names of operations with a ``dim`` and an ``index`` of places along it."""


_EXACT = {
    "arange", "add", "sub", "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "expand_as",
    "repeat", "repeat_interleave", "permute", "transpose", "clone", "contiguous", "alias", "detach", "to", "_to_copy",
}  # fmt: skip
"""Names of operations that leave integers what they are, or add to them."""


def where_values_say(plan: MonteCarloPlan, nodes: Sequence[fx.Node]) -> tuple[fx.Node, str] | None:
    """The first of the nodes that finds rows by values, and what it does with them."""
    told: set[fx.Node] = set()
    for node in nodes:
        sources = [source for source in _valued(node) if source in told]
        if node.op == "placeholder" or node in plan.sites_of or (sources and operation_of(node) not in VALUELESS):
            # A size holds nothing of the values.
            told |= {node} if isinstance(node.meta.get("val"), (Tensor, list, tuple)) else set()
        if sources and _picks(plan, node):
            if plan.symbol in symbols_of(node):
                return node, "gives the rows a size that torch does not know beforehand"
            return node, "picks some of the rows of a batch by their values"
        if any(index in told for index in _indices_of_rows(plan, node)):
            return node, "finds rows of a batch at places that values decide"
    return None


def counting_rows(plan: MonteCarloPlan, nodes: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> fx.Node | None:
    """The first of the nodes that counts the rows for something else than to find each at its own place.

    With the draws along the batch it would count those of all draws, which need not show with three of them.
    """
    counts = numbers_of_rows(plan, nodes)
    leaps = next((node for node in counts if _leaps(plan, node)), None)
    return leaps or next((counts[node] for node in outputs if node in counts), None)


def numbers_of_rows(plan: MonteCarloPlan, nodes: Iterable[fx.Node]) -> Mapping[fx.Node, fx.Node]:
    """Those of the nodes that hold numbers of rows, or what is computed from them, each with the node that counts."""
    counts: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if _counts(plan, node):
            counts[node] = node
        elif operation_of(node) not in VALUELESS and isinstance(node.meta.get("val"), (Tensor, list, tuple)):
            places = _indices(plan, node)
            found = next((counts[each] for each in _valued(node) if each in counts and each not in places), None)
            counts |= {node: found} if found is not None else {}
    return counts


def stay_exact(node: fx.Node, numbers: Collection[fx.Node]) -> bool:
    """Whether a node that holds numbers of rows gives those of many more rows just as exactly.

    A sum or a multiple of integers does. What is clamped, divided or rounded may be right for the rows of a batch, and
    wrong for those of all its draws: float32 holds no integer beyond 2**24.
    """
    value, name = node.meta.get("val"), operation_of(node)
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        return False
    if name == "mul":
        return sum(source in numbers for source in node.all_input_nodes) < 2
    if name == "slice":  # As in `rows[:, None]`, which takes all of them.
        return symbolic_shape(node) == symbolic_shape(node.all_input_nodes[0])
    if name == "select":  # As in `edges[0]`, one of as many as there are with more rows too.
        given = arguments(node)
        return bool(symbolic_shape(given["input"])[given["dim"]].is_Integer)
    if node.target is operator.getitem:  # As in `source, target = edges`, of which a graph fixes the number.
        return operation_of(node.all_input_nodes[0]) == "unbind"
    return name in _EXACT


def _valued(node: fx.Node) -> list[fx.Node]:
    """The arguments of whose values the result is made."""
    return node.all_input_nodes[:1] if operation_of(node) in _LIKE else node.all_input_nodes


def _counts(plan: MonteCarloPlan, node: fx.Node) -> bool:
    """Whether the values are numbers of rows, or made of the number of all rows."""
    if not isinstance(node.meta.get("val"), (Tensor, list, tuple)):
        return False  # A size, which counts only where values are made of it.
    return bool(_made_of(plan, node)) and not _cuts_rows(plan, node)


def _leaps(plan: MonteCarloPlan, node: fx.Node) -> bool:
    """Whether a number grows with the rows by leaps, as ``rows // 2``: a place made of it is another in other batches.

    Those of ``torch.arange(rows)``, and multiples of the number of rows, find each row at its own place.
    """
    return not all(each.is_polynomial(plan.symbol) for each in _made_of(plan, node))


def _made_of(plan: MonteCarloPlan, node: fx.Node) -> list[Any]:
    """The single numbers that it takes and that depend on how many rows there are; sizes of its result are in lists."""
    numbers = (each.meta.get("val") for each in (*node.args, *node.kwargs.values()) if isinstance(each, fx.Node))
    formulas = (each.node.expr for each in numbers if isinstance(each, _NUMBERS))
    return [formula for formula in formulas if plan.symbol in formula.free_symbols]


def _cuts_rows(plan: MonteCarloPlan, node: fx.Node) -> bool:
    """Whether single numbers say only how many rows the result has, or which of them."""
    name = operation_of(node)
    if name in _CUTS:
        given = arguments(node)
        return plan.symbol in symbolic_shape(given["input"])[given["dim"]].free_symbols
    return name in _PARTED


def _indices(plan: MonteCarloPlan, node: fx.Node) -> Collection[fx.Node]:
    """The places in a tensor that holds the rows."""
    if operation_of(node).removesuffix("_") not in _ALONG | {"index", "index_put"}:
        return ()
    given = arguments(node)
    index = given["index"] if "index" in given else given["indices"]
    listed = index if isinstance(index, (tuple, list)) else [index]
    at = _dimension_of_rows(plan, given["input"])
    if at is None:
        return listed if plan.symbol in symbols_of(given["input"]) else ()
    # Places along another dimension are a choice within a row, which must not hang on its number.
    if "index" in given:
        return listed if given["dim"] % given["input"].meta["val"].ndim == at else ()
    return listed[at : at + 1]


def _picks(plan: MonteCarloPlan, node: fx.Node) -> bool:
    """Whether there are as many results as the values say, as of ``nonzero`` or an index that is a mask."""
    value = node.meta.get("val")
    return (
        isinstance(value, Tensor)
        and bool(free_unbacked_symbols(value))
        and any(plan.symbol in symbols_of(source) for source in node.all_input_nodes)
    )


def _indices_of_rows(plan: MonteCarloPlan, node: fx.Node) -> Iterator[fx.Node]:
    """What tells an operation which rows it finds, or, of ``masked_scatter``, how many each row takes."""
    name = operation_of(node).removesuffix("_")
    if name not in _ALONG | {"index", "index_put", "embedding", "take", "put", "masked_scatter"}:
        return
    given = arguments(node)
    if name == "embedding":
        given = {"input": given["weight"], "index": given["indices"], "dim": 0}
    elif name in ("index", "index_put"):
        at = _dimension_of_rows(plan, given["input"])
        given = {
            "input": given["input"],
            "index": None if at is None else dict(enumerate(given["indices"])).get(at),
            "dim": at,
        }
    elif name in ("take", "put", "masked_scatter"):
        yield from (
            given[key] for key in ("index", "mask") if plan.symbol in symbols_of(given["input"]) and key in given
        )
        return
    at = _dimension_of_rows(plan, given["input"])
    if at is not None and isinstance(given["index"], fx.Node) and given["dim"] % given["input"].meta["val"].ndim == at:
        yield given["index"]


def _dimension_of_rows(plan: MonteCarloPlan, node: fx.Node) -> int | None:
    """The dimension that holds the batch and nothing else: places in a folded one may be those of a row's own parts."""
    sizes = symbolic_shape(node)
    return sizes.index(plan.symbol) if plan.symbol in sizes else None
