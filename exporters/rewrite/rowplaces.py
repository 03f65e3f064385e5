"""Rows that are read or written at places which values decide: no check with a few random rows need show it.

``hidden[torch.arange(batch), last]`` reads each row at its own place. ``hidden[nearest]`` reads other rows, and a mask
such as ``hidden[hidden[:, 0] > 0]`` some of them.
"""

import operator
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from exporters.capture.reach import owner_of, written
from exporters.noise.sites import arguments, operation_of
from exporters.rewrite.drawplan import MonteCarloPlan
from exporters.rewrite.equalrows import CUTS
from exporters.rewrite.layout import symbolic_shape, symbols_of, takes

__all__ = ["VALUELESS", "counting_rows", "numbers_of_rows", "stay_exact", "where_values_say"]

VALUELESS = {"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like"}
"""Names of operations that take of a tensor what it is, and not its values."""

_LIKE = {"expand_as", "view_as", "reshape_as"}
"""Names of operations that take of their second argument its shape alone."""

_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool)

_SIZES = {
    "dims", "groups", "indices", "normalized_shape", "output_size", "repeats", "shape", "size", "sizes", "split_size",
    "split_sizes",
}  # fmt: skip
"""Names of arguments that say how large a result is, in how many parts, or how often: its shape shows it."""

_ALONG = {
    "index_select", "gather", "index_add", "index_copy", "index_fill", "index_reduce", "scatter", "scatter_add",
    "scatter_reduce",
}  # fmt: skip
"""Names of operations with a ``dim`` and an ``index`` of places along it."""

_IN_BRACKETS = {"index", "index_put"}
"""Those with ``indices``, the places along each dimension."""

_ANYWHERE = {"take", "put", "masked_scatter"}
"""Those that count all of a tensor's elements."""

_EXACT = {
    "arange", "add", "sub", "mul", "select", "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze",
    "expand", "expand_as", "repeat", "repeat_interleave", "permute", "transpose", "clone", "contiguous", "detach", "to",
}  # fmt: skip
"""Names of operations that leave integers what they are, or add and multiply them."""


def where_values_say(plan: MonteCarloPlan, nodes: Sequence[fx.Node]) -> tuple[fx.Node, str] | None:
    """The first of the nodes that finds rows by values, and what it does with them."""
    told = _followed(plan, nodes, {node: node for node in nodes if node.op == "placeholder" or node in plan.sites_of})
    for node in nodes:
        if any(source in told for source in _valued(node)) and _picks(plan, node):
            if plan.symbol in symbols_of(node):
                return node, "gives the rows a size that torch does not know beforehand"
            return node, "picks some of the rows of a batch by their values"
        if any(index in told for index in _places_of_rows(plan, node)):
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
    listed = list(nodes)
    return _followed(plan, listed, {node: node for node in listed if _counts(plan, node)}, places=False)


def stay_exact(node: fx.Node) -> bool:
    """Whether a node that holds numbers of rows gives those of many more rows just as exactly.

    A sum or a product of integers does. What is clamped, divided or rounded may be right for the rows of a batch, and
    wrong for those of all its draws: float32 holds no integer beyond 2**24.
    """
    value, name = node.meta.get("val"), operation_of(node)
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        return False
    if name == "slice":  # `rows[:1024]` takes all of a batch that is not larger, and not all of its draws together.
        given = arguments(node)
        return given["start"] in (None, 0) and given["end"] in (None, sys.maxsize)
    if node.target is operator.getitem:  # As in `source, target = edges`, of which a graph fixes the number.
        return operation_of(node.all_input_nodes[0]) == "unbind"
    return name in _EXACT


def _followed(
    plan: MonteCarloPlan, nodes: Sequence[fx.Node], begins: Mapping[fx.Node, fx.Node], places: bool = True
) -> Mapping[fx.Node, fx.Node]:
    """The nodes to whose values those of ``begins`` come, each with what stands there for it.

    What is written into a tensor comes to all that is read from it. Without ``places``, nothing comes from what only
    says where in a tensor rows lie.
    """
    found, before = dict(begins), -1
    while len(found) > before:
        before = len(found)
        for node in nodes:
            sources = [each for each in _valued(node) if each in found] if _holds_values(node) else []
            aside = () if places or not sources else _aside(plan, node)
            origin = next((found[each] for each in sources if each not in aside), None)
            if origin is not None:
                found.setdefault(node, origin)
            if node in found and node in plan.writes_seen:
                for target in written(node):
                    found.setdefault(owner_of(target), found[node])
    return found


def _holds_values(node: fx.Node) -> bool:
    """A size holds nothing of them; a number that was taken out of a tensor does."""
    value = node.meta.get("val")
    is_taken = isinstance(value, torch.SymFloat) and bool(free_unbacked_symbols(value))
    return operation_of(node) not in VALUELESS and (is_taken or isinstance(value, (Tensor, list, tuple)))


def _valued(node: fx.Node) -> list[fx.Node]:
    """The arguments of whose values the result is made."""
    return node.all_input_nodes[:1] if operation_of(node) in _LIKE else node.all_input_nodes


def _counts(plan: MonteCarloPlan, node: fx.Node) -> bool:
    """Whether the values are numbers of rows, or made of the number of all rows."""
    if not isinstance(node.meta.get("val"), (Tensor, list, tuple)):
        return False  # A size, which counts only where values are made of it.
    cuts = _cuts_rows(plan, node) or node in plan.equal
    return bool(_made_of(plan, node)) and (_leaps(plan, node) or not cuts)


def _leaps(plan: MonteCarloPlan, node: fx.Node) -> bool:
    """Whether a number grows with the rows by leaps, as ``rows // 2``: a place made of it is another in other batches.

    Those of ``torch.arange(rows)``, and multiples of the number of rows, find each row at its own place.
    """
    # Comparisons, as ``rows > 2000``, are no expressions.
    return not all(isinstance(each, sympy.Expr) and each.is_polynomial(plan.symbol) for each in _made_of(plan, node))


def _made_of(plan: MonteCarloPlan, node: fx.Node) -> list[Any]:
    """The numbers that it takes, alone or in lists, and that depend on how many rows there are."""
    taken: list[fx.Node] = node.all_input_nodes
    if isinstance(node.target, torch._ops.OpOverload):
        taken = []
        fx.map_arg([value for name, value in arguments(node).items() if name not in _SIZES], taken.append)
    numbers = (each.meta.get("val") for each in taken)
    formulas = (each.node.expr for each in numbers if isinstance(each, _NUMBERS))
    return [formula for formula in formulas if plan.symbol in formula.free_symbols]


def _cuts_rows(plan: MonteCarloPlan, node: fx.Node) -> bool:
    """Whether the numbers say only which of the rows the result has."""
    given = arguments(node) if operation_of(node) in CUTS else {}
    return bool(given) and plan.symbol in symbolic_shape(given["input"])[given["dim"]].free_symbols


def _aside(plan: MonteCarloPlan, node: fx.Node) -> Sequence[fx.Node]:
    """The places in a tensor that holds the rows."""
    given = arguments(node) if operation_of(node).removesuffix("_") in _ALONG | _IN_BRACKETS else {}
    if not given or plan.symbol not in symbols_of(given["input"]):
        return ()
    return _places(given, _dimension_of_rows(plan, given["input"]))


def _places(given: Mapping[str, Any], at: int | None) -> Sequence[fx.Node]:
    """The places that an operation is given, along the dimension ``at`` or, if that is None, along any."""
    if "index" in given:
        # Places along another dimension are a choice within a row, which must not hang on its number.
        is_along = at is None or given["dim"] % given["input"].meta["val"].ndim == at
        return [given["index"]] if is_along else []
    indices: Sequence[fx.Node] = given["indices"]
    return indices if at is None else indices[at : at + 1]


def _picks(plan: MonteCarloPlan, node: fx.Node) -> bool:
    """Whether there are as many results as the values say, as of ``nonzero`` or an index that is a mask."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and bool(free_unbacked_symbols(value)) and takes(node, plan.symbol)


def _places_of_rows(plan: MonteCarloPlan, node: fx.Node) -> Sequence[fx.Node]:
    """What tells an operation which rows it finds, or, of ``masked_scatter``, how many each row takes."""
    name = operation_of(node).removesuffix("_")
    if name not in _ALONG | _IN_BRACKETS | _ANYWHERE | {"embedding"}:
        return ()
    given = arguments(node)
    if name == "embedding":
        return [given["indices"]] if _dimension_of_rows(plan, given["weight"]) == 0 else []
    if name in _ANYWHERE:
        places = [given[key] for key in ("index", "mask") if key in given]
        return places if plan.symbol in symbols_of(given["input"]) else []
    at = _dimension_of_rows(plan, given["input"])
    return () if at is None else _places(given, at)


def _dimension_of_rows(plan: MonteCarloPlan, node: fx.Node) -> int | None:
    """The dimension that holds the batch and nothing else: places in a folded one may be those of a row's own parts."""
    sizes = symbolic_shape(node)
    return sizes.index(plan.symbol) if plan.symbol in sizes else None
