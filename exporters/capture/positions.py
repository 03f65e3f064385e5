"""How large a dimension may be whose places are numbered, 0, 1, 2 ..., and looked up in a table of positions.

The numbers are no input, so nothing shows in the values of a row that it is too long: the Gather of ONNX Runtime for
CUDA would give zeros for the positions beyond the table. Only what is certain is told, as in ``lookups``. Where a mask
is counted (RoBERTa), it is certain of rows without padding.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import fx

from exporters.capture.handing import handed_on, sizes_of, value_of
from exporters.capture.reach import touched_by_writes
from exporters.capture.tables import lookups
from exporters.noise.sites import arguments, aten_name

__all__ = ["most_by_positions"]

_INTEGERS = (torch.int32, torch.int64)
_RULES = {"add", "arange", "cumsum", "mul", "slice", "sub", "to", "type_as"}


def most_by_positions(graph: fx.Graph, symbols: Mapping[str, Any]) -> dict[str, int]:
    """The largest size by dimension, of those that a table bounds.

    Args:
        graph: as it was captured; operations in place may be left in it.
        symbols: the formula of each dynamic dimension.
    """
    ends = _ends(graph)
    found: dict[str, int] = {}
    for node in graph.nodes:
        for lookup in lookups(node):
            for end in ends.get(lookup.index, ()):
                for name, most in _solved(end, lookup.places, symbols):
                    found[name] = min(most, found.get(name, most))
    return found


def _ends(graph: fx.Graph) -> dict[fx.Node, frozenset[Any]]:
    """By node the formulas of what comes after the highest of the numbers that it holds."""
    # What is written into holds other values from then on.
    written = touched_by_writes(graph)
    found: dict[fx.Node, frozenset[Any]] = {}
    masks: set[fx.Node] = set()
    for node in graph.nodes:
        if node not in written:
            masks |= {node} if _is_mask(node, masks) else set()
            found[node] = frozenset(_ends_of(node, found, masks))
    return found


def _is_mask(node: fx.Node, known: Collection[fx.Node]) -> bool:
    """Whether it holds nothing but 0 and 1."""
    value = node.meta.get("val")
    if aten_name(node) in ("ones", "ones_like", "new_ones") or (
        isinstance(value, torch.Tensor) and value.dtype == torch.bool and _may_be_all(node)
    ):
        return True
    sources = list(handed_on(node))
    return bool(sources) and all(source in known for source in sources) and len(node.all_input_nodes) == len(sources)


def _may_be_all(node: fx.Node) -> bool:
    """Whether it may be a mask of padding: what equals one value, as a separator does, is hardly ever everywhere."""
    source = node.args[0] if aten_name(node) == "to" else node
    return getattr(source, "op", "") == "placeholder" or node.target is torch.ops.aten.ne.Scalar


def _ends_of(node: fx.Node, known: Mapping[fx.Node, frozenset[Any]], masks: Collection[fx.Node]) -> Iterator[Any]:
    name = aten_name(node)
    given = arguments(node) if name in _RULES else {}
    if name == "arange":
        start, step = given.get("start", 0), given.get("step", 1)
        if isinstance(start, int) and step == 1 and value_of(node).dtype in _INTEGERS:
            yield start + sympy.sympify(sizes_of(node)[0])
    elif name == "cumsum":
        if given["input"] in masks and value_of(node).dtype.itemsize >= 4:  # Of 16 bits it is rounded.
            yield 1 + sympy.sympify(sizes_of(node)[given["dim"]])
    elif name in ("to", "type_as") and value_of(node).dtype in _INTEGERS:
        # Also of 64 bits in 32, as RoBERTa's: there is no table of more places.
        yield from known.get(given["input"], ())
    elif name == "mul":
        factors = given["input"], given["other"]
        yield from (end for one, other in (factors, factors[::-1]) if one in masks for end in known.get(other, ()))
    elif name in ("add", "sub"):
        if isinstance(given["other"], int) and given["alpha"] == 1:
            more = given["other"] if name == "add" else -given["other"]
            yield from (end + more for end in known.get(given["input"], ()))
    elif name == "slice":
        # As ``[None, :]`` writes one, of all there is.
        yield from known.get(given["input"], ()) if sizes_of(node) == sizes_of(given["input"]) else ()
    else:
        yield from (end for source in handed_on(node) for end in known.get(source, ()))


def _solved(end: Any, places: int, symbols: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The dimensions in which ``end`` is linear and rising, with the largest size for which it is within ``places``."""
    for name, symbol in symbols.items():
        slope = end.coeff(symbol)
        rest = end - slope * symbol
        if slope.is_Integer and slope > 0 and rest.is_Integer:
            yield name, int((places - rest) // slope)
