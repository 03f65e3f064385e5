"""Which values an integer input may hold: a module that looks something up by them has so many places and no more.

A runtime need not notice a value beyond them: the Gather of ONNX Runtime for CUDA gives zeros, and what torch does on a
GPU leaves the device unusable. So the manifest tells the values, and a run looks at them first. Only what is certain
is told: a path from an input to a lookup counts where all that lies on it hands every value on as it is.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from deploykit.tensors import Allowed, TensorSpec
from exporters.capture.handing import AS_THEY_LIE, handed_on, size_of, sizes_of, value_of
from exporters.capture.reach import touched_by_writes
from exporters.capture.tables import Lookup, lookups
from exporters.noise.sites import arguments, aten_name, module_of

__all__ = ["with_allowed"]

_IN_PIECES = frozenset({"chunk", "split", "split_with_sizes", "tensor_split", "unbind"})


@dataclass(frozen=True, slots=True)
class _Part:
    """What a tensor of the graph holds of an input: the values of some columns of its rows, or all (None).

    ``plain`` tells that dimension 1 of the tensor still is that of the columns.
    """

    name: str
    columns: range | None = None
    plain: bool = False


def with_allowed(specs: Sequence[TensorSpec], graph: fx.Graph) -> tuple[TensorSpec, ...]:
    """The inputs with the values that they may hold, as far as the captured graph tells.

    Args:
        specs: the inputs, in the order of the graph's.
        graph: as it was captured; operations in place may be left in it.
    """
    held = _held(specs, graph)
    found: dict[tuple[str, range | None], Allowed] = {}
    for node in graph.nodes:
        for lookup in lookups(node):
            for part in held.get(lookup.index, ()):
                claim = _claim(node, lookup, part.columns)
                key = part.name, part.columns
                found[key] = _both(found[key], claim) if key in found else claim
    return tuple(
        replace(spec, allowed=tuple(claim for (name, _), claim in found.items() if name == spec.name)) for spec in specs
    )


def _claim(node: fx.Node, lookup: Lookup, columns: range | None) -> Allowed:
    return Allowed(
        min=-lookup.places if lookup.signed else 0, max=lookup.places - 1, module=module_of(node),
        operation=aten_name(node).strip("_"), first_column=columns[0] if columns else None,
        last_column=columns[-1] if columns else None,
    )  # fmt: skip


def _both(known: Allowed, other: Allowed) -> Allowed:
    tighter = other if other.max < known.max else known
    return replace(tighter, min=max(known.min, other.min))


def _held(specs: Sequence[TensorSpec], graph: fx.Graph) -> dict[fx.Node, tuple[_Part, ...]]:
    """By node the parts of integer inputs that it holds, each value in at least one place."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    inputs = dict(zip(placeholders, specs, strict=True))
    # What is written into holds other values from then on.
    written = touched_by_writes(graph)
    found: dict[fx.Node, tuple[_Part, ...]] = {}
    for node in graph.nodes:
        if node in written:
            continue
        if node in inputs:
            found[node] = (_Part(inputs[node].name, plain=True),) if "int" in inputs[node].dtype else ()
        else:
            found[node] = tuple(dict.fromkeys(_handed_on(node, found)))
    return found


def _handed_on(node: fx.Node, held: Mapping[fx.Node, tuple[_Part, ...]]) -> Iterator[_Part]:
    for source in handed_on(node):
        for part in held.get(source, ()):
            yield replace(part, plain=part.plain and aten_name(node) in AS_THEY_LIE)
    cut = _cut(node)
    taken = [cut.of(part) for part in held.get(cut.source, ())] if cut is not None else []
    yield from (part for part in taken if part is not None)


@dataclass(frozen=True, slots=True)
class _Cut:
    """The places ``chosen`` of a dimension of ``source``; the result ``keeps`` that dimension, or has none for it."""

    source: fx.Node
    dimension: int
    chosen: slice
    keeps: bool

    def of(self, part: _Part) -> _Part | None:
        """What is left of a part of the source; None where that cannot be told in columns."""
        size = size_of(self.source, self.dimension)
        if self.chosen == slice(None) or (size is not None and range(size)[self.chosen] == range(size)):
            return replace(part, plain=part.plain and self.keeps)
        if size is None or not part.plain or self.dimension != 1:
            return None
        columns = (range(size) if part.columns is None else part.columns)[self.chosen]
        # Written as the first and the last, so none may be left out between.
        return replace(part, columns=columns, plain=self.keeps) if columns and columns.step == 1 else None


def _cut(node: fx.Node) -> _Cut | None:
    if node.target is operator.getitem:
        return _piece(*node.args)
    if aten_name(node) not in ("narrow", "select", "slice"):
        return None
    given = arguments(node)
    source, dimension = given["input"], given["dim"] % value_of(given["input"]).ndim
    if aten_name(node) == "narrow":
        start, length = given["start"], given["length"]
        is_known = isinstance(start, int) and isinstance(length, int)
        # From the end, and up to it, there is no number for where it ends.
        return _Cut(source, dimension, slice(start, start + length or None), True) if is_known and length else None
    if aten_name(node) == "slice":
        # That a dynamic dimension is whole shows only in its size.
        ends = (None,) if sizes_of(node) == sizes_of(source) else (given["start"], given["end"], given["step"])
        return None if any(isinstance(end, fx.Node) for end in ends) else _Cut(source, dimension, slice(*ends), True)
    size, index = size_of(source, dimension), given["index"]
    if size is None or not isinstance(index, int):
        return None
    return _Cut(source, dimension, slice(index % size, index % size + 1), False)


def _piece(pieces: Any, number: Any) -> _Cut | None:
    """One of the tensors that an operation gives."""
    if aten_name(pieces) not in _IN_PIECES:
        return None
    given = arguments(pieces)
    source, dimension = given["input"], given["dim"] % value_of(given["input"]).ndim
    keeps = not aten_name(pieces).startswith("unbind")
    lengths = [piece.shape[dimension] if keeps else 1 for piece in pieces.meta["val"]]
    if not all(isinstance(length, int) for length in lengths):
        return None
    start = sum(lengths[:number])
    return _Cut(source, dimension, slice(start, start + lengths[number]), keeps)
