"""Which values an integer input may hold: a module that looks something up by them has so many places and no more.

A runtime need not notice a value beyond them: the Gather of ONNX Runtime for CUDA gives zeros, and what torch does on a
GPU leaves the device unusable. So the manifest tells the values, and a run looks at them first. Only what is certain
is told: a path from an input to a lookup counts where all that lies on it hands every value on as it is.
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from deploykit.tensors import Allowed, TensorSpec
from exporters.capture.reach import touched_by_writes
from exporters.noise.sites import arguments, aten_name, module_of

__all__ = ["with_allowed"]

_AS_THEY_LIE = frozenset({"alias", "clone", "contiguous", "detach", "to"})
_ELSEWHERE = frozenset({
    "broadcast_to", "cat", "concat", "concatenate", "expand", "expand_as", "flatten", "flip", "hstack", "movedim",
    "moveaxis", "numpy_T", "permute", "ravel", "reshape", "reshape_as", "squeeze", "stack", "swapaxes", "swapdims",
    "t", "transpose", "unflatten", "unsqueeze", "view", "view_as",
})  # fmt: skip
"""Operations whose result holds every value of their first argument, in the same places or in others."""

_EXPANDING = frozenset({"broadcast_to", "expand", "expand_as"})

_IN_PIECES = frozenset({"chunk", "split", "split_with_sizes", "tensor_split", "unbind"})


@dataclass(frozen=True, slots=True)
class _Part:
    """What a tensor of the graph holds of an input: the values of some columns of its rows, or all (None).

    ``plain`` tells that dimension 1 of the tensor still is that of the columns.
    """

    name: str
    columns: range | None = None
    plain: bool = False


@dataclass(frozen=True, slots=True)
class _Lookup:
    """An operation takes values of ``index`` as numbers of ``places``, with ``signed`` from the end, too."""

    index: fx.Node
    places: int
    signed: bool = False


def with_allowed(specs: Sequence[TensorSpec], graph: fx.Graph) -> tuple[TensorSpec, ...]:
    """The inputs with the values that they may hold, as far as the captured graph tells.

    Args:
        specs: the inputs, in the order of the graph's.
        graph: as it was captured; operations in place may be left in it.
    """
    held = _held(specs, graph)
    found: dict[tuple[str, range | None], Allowed] = {}
    for node in graph.nodes:
        for lookup in _lookups(node):
            for part in held.get(lookup.index, ()):
                claim = _claim(node, lookup, part.columns)
                key = part.name, part.columns
                found[key] = _both(found[key], claim) if key in found else claim
    return tuple(
        replace(spec, allowed=tuple(claim for (name, _), claim in found.items() if name == spec.name)) for spec in specs
    )


def _claim(node: fx.Node, lookup: _Lookup, columns: range | None) -> Allowed:
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
    name = aten_name(node)
    if name in _AS_THEY_LIE or name in _ELSEWHERE:
        for source in _first_argument(node):
            for part in held.get(source, ()):
                if _holds(node, source) and not _may_be_nowhere(node, source):
                    yield replace(part, plain=part.plain and name in _AS_THEY_LIE)
        return
    cut = _cut(node)
    taken = [cut.of(part) for part in held.get(cut.source, ())] if cut is not None else []
    yield from (part for part in taken if part is not None)


def _first_argument(node: fx.Node) -> list[fx.Node]:
    """That of an operation, or those of one that joins several."""
    first = node.args[0] if node.args else ()
    return [source for source in (first if isinstance(first, Sequence) else (first,)) if isinstance(source, fx.Node)]


def _holds(node: fx.Node, source: fx.Node) -> bool:
    """Whether the type of ``node`` holds all values of that of ``source``; no integer holds those of fractions."""
    wide = _value(node).dtype
    return node.target is not torch.ops.aten.view.dtype and wide == torch.promote_types(wide, _value(source).dtype)


def _may_be_nowhere(node: fx.Node, source: fx.Node) -> bool:
    """Whether ``node`` expands ``source`` to a size that is 0, or could be while none of the source's is."""
    new = [size for size in _sizes(node) if size not in _sizes(source)] if aten_name(node) in _EXPANDING else []
    return not all(isinstance(size, int) and size for size in new)


@dataclass(frozen=True, slots=True)
class _Cut:
    """The places ``chosen`` of a dimension of ``source``; the result ``keeps`` that dimension, or has none for it."""

    source: fx.Node
    dimension: int
    chosen: slice
    keeps: bool

    def of(self, part: _Part) -> _Part | None:
        """What is left of a part of the source; None where that cannot be told in columns."""
        size = _size(self.source, self.dimension)
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
    source, dimension = given["input"], given["dim"] % _value(given["input"]).ndim
    if aten_name(node) == "narrow":
        start, length = given["start"], given["length"]
        is_known = isinstance(start, int) and isinstance(length, int)
        # From the end, and up to it, there is no number for where it ends.
        return _Cut(source, dimension, slice(start, start + length or None), True) if is_known and length else None
    if aten_name(node) == "slice":
        # That a dynamic dimension is whole shows only in its size.
        ends = (None,) if _sizes(node) == _sizes(source) else (given["start"], given["end"], given["step"])
        return None if any(isinstance(end, fx.Node) for end in ends) else _Cut(source, dimension, slice(*ends), True)
    size, index = _size(source, dimension), given["index"]
    if size is None or not isinstance(index, int):
        return None
    return _Cut(source, dimension, slice(index % size, index % size + 1), False)


def _piece(pieces: Any, number: Any) -> _Cut | None:
    """One of the tensors that an operation gives."""
    if aten_name(pieces) not in _IN_PIECES:
        return None
    given = arguments(pieces)
    source, dimension = given["input"], given["dim"] % _value(given["input"]).ndim
    keeps = not aten_name(pieces).startswith("unbind")
    lengths = [piece.shape[dimension] if keeps else 1 for piece in pieces.meta["val"]]
    if not all(isinstance(length, int) for length in lengths):
        return None
    start = sum(lengths[:number])
    return _Cut(source, dimension, slice(start, start + lengths[number]), keeps)


def _lookups(node: fx.Node) -> Iterator[_Lookup]:
    find = _FOUND_BY.get(aten_name(node).strip("_"))
    for index, places, signed in find(arguments(node)) if find else ():
        if isinstance(index, fx.Node) and isinstance(places, int) and places > 0:
            yield _Lookup(index, places, signed)


_Given = Mapping[str, Any]
_Found = Iterator[tuple[Any, int | None, bool]]


def _rows(given: _Given) -> _Found:
    yield given["indices"], _size(given["weight"], 0), False


def _along(given: _Given) -> _Found:
    if _value(given["input"]).ndim:
        yield given["index"], _size(given["input"], given["dim"]), False


def _along_from_both_ends(given: _Given) -> _Found:
    yield from ((index, places, True) for index, places, _ in _along(given))


def _anywhere(given: _Given) -> _Found:
    sizes = [_size(given["input"], dimension) for dimension in range(_value(given["input"]).ndim)]
    yield given["index"], math.prod(size or 0 for size in sizes), True


def _in_brackets(given: _Given) -> _Found:
    """``table[:, numbers]``; a mask takes places too, and as many dimensions as it has."""
    given_ones = [index for index in given["indices"] if index is not None]
    if all(_value(index).dtype in (torch.int32, torch.int64) for index in given_ones):
        for dimension, index in enumerate(given["indices"]):
            yield index, _size(given["input"], dimension), True


def _classes(given: _Given) -> _Found:
    yield given["input"], given["num_classes"], False


_FOUND_BY: Mapping[str, Callable[[_Given], _Found]] = {
    "embedding": _rows, "embedding_bag": _rows,
    "gather": _along, "index_add": _along, "index_copy": _along, "index_fill": _along_from_both_ends,
    "index_select": _along, "scatter": _along, "scatter_add": _along, "scatter_reduce": _along,
    "take": _anywhere, "index": _in_brackets, "index_put": _in_brackets, "one_hot": _classes,
}  # fmt: skip
"""What each operation looks up: numbers, how many places there are, and whether torch counts from the end below 0."""


def _value(node: fx.Node) -> Tensor:
    value: Tensor = node.meta["val"]
    return value


def _size(node: fx.Node, dimension: int) -> int | None:
    """None where it is dynamic."""
    size = _value(node).shape[dimension]
    return size if isinstance(size, int) else None


def _sizes(node: fx.Node) -> list[Any]:
    """Dynamic ones as formulas: to compare the sizes themselves would compare those of the example."""
    return [size if isinstance(size, int) else size.node.expr for size in _value(node).shape]
