"""How large a dimension may be whose places are numbered, 0, 1, 2 ..., and looked up in a table of positions.

The numbers are no input, so nothing shows in the values of a row that it is too long: the Gather of ONNX Runtime for
CUDA would give zeros for the positions beyond the table. Only what is certain is told, as in ``lookups``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import fx

from exporters.capture.handing import handed_on, sizes_of, value_of
from exporters.capture.reach import touched_by_writes
from exporters.capture.tables import lookups
from exporters.noise.sites import arguments, aten_name

__all__ = ["most_by_positions"]


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
    for node in graph.nodes:
        if node not in written:
            found[node] = frozenset(_ends_of(node, found))
    return found


def _ends_of(node: fx.Node, known: Mapping[fx.Node, frozenset[Any]]) -> Iterator[Any]:
    name = aten_name(node)
    given = arguments(node) if name in ("arange", "add", "sub", "slice") else {}
    if name == "arange":
        start, step = given.get("start", 0), given.get("step", 1)
        if isinstance(start, int) and step == 1 and value_of(node).dtype in (torch.int32, torch.int64):
            yield start + sympy.sympify(sizes_of(node)[0])
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
