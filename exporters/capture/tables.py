"""What operations look up: the numbers of places of a table, of which there are so many and no more."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from exporters.capture.handing import size_of, value_of
from exporters.noise.sites import arguments, aten_name

__all__ = ["Lookup", "lookups"]


@dataclass(frozen=True, slots=True)
class Lookup:
    """An operation takes values of ``index`` as numbers of ``places``, with ``signed`` from the end, too."""

    index: fx.Node
    places: int
    signed: bool = False


def lookups(node: fx.Node) -> Iterator[Lookup]:
    find = _FOUND_BY.get(aten_name(node).strip("_"))
    for index, places, signed in find(arguments(node)) if find else ():
        if isinstance(index, fx.Node) and isinstance(places, int) and places > 0:
            yield Lookup(index, places, signed)


_Given = Mapping[str, Any]
_Found = Iterator[tuple[Any, int | None, bool]]


def _rows(given: _Given) -> _Found:
    yield given["indices"], size_of(given["weight"], 0), False


def _along(given: _Given) -> _Found:
    if value_of(given["input"]).ndim:
        yield given["index"], size_of(given["input"], given["dim"]), False


def _along_from_both_ends(given: _Given) -> _Found:
    yield from ((index, places, True) for index, places, _ in _along(given))


def _anywhere(given: _Given) -> _Found:
    sizes = [size_of(given["input"], dimension) for dimension in range(value_of(given["input"]).ndim)]
    yield given["index"], math.prod(size or 0 for size in sizes), True


def _in_brackets(given: _Given) -> _Found:
    """``table[:, numbers]``; a mask takes places too, and as many dimensions as it has."""
    given_ones = [index for index in given["indices"] if index is not None]
    if all(value_of(index).dtype in (torch.int32, torch.int64) for index in given_ones):
        for dimension, index in enumerate(given["indices"]):
            yield index, size_of(given["input"], dimension), True


def _classes(given: _Given) -> _Found:
    yield given["input"], given["num_classes"], False


_FOUND_BY: Mapping[str, Callable[[_Given], _Found]] = {
    "embedding": _rows, "embedding_bag": _rows,
    "gather": _along, "index_add": _along, "index_copy": _along, "index_fill": _along_from_both_ends,
    "index_select": _along, "scatter": _along, "scatter_add": _along, "scatter_reduce": _along,
    "take": _anywhere, "index": _in_brackets, "index_put": _in_brackets, "one_hot": _classes,
}  # fmt: skip
"""What each operation looks up: numbers, how many places there are, and whether torch counts from the end below 0."""
