"""What a capture takes for granted of several dynamic sizes at once, as that one of them is not the larger.

torch refuses code that asks for a single size, and says nothing where it compares two: the graph has the way that the
example went.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import log, prod
from pathlib import Path
from traceback import FrameSummary
from typing import Any

import sympy
import torch
from torch import fx

from deploykit.bounds import Bounds, beyond
from deploykit.tensors import TensorSpec

__all__ = ["Relation", "Way", "relations_of", "sizes_around", "symbols_of"]

_MOST_POINTS = 1_000
"""Sizes that are looked at together, so that it takes about a second however many dimensions there are."""

_MOST_ELEMENTS = 4_000_000
"""The product of all sizes that are tried, or four times that of the defaults where these are large."""

_TORCH, _OURS = Path(torch.__file__).parent, Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A condition on dynamic dimensions, whose symbols have their names.

    ``line`` is where the user's code asks for it, empty where only torch's does.
    """

    condition: Any
    line: str = ""

    def __str__(self) -> str:
        if isinstance(self.condition, sympy.core.relational.Relational):
            return f"{self.condition.lhs} {self.condition.rel_op} {self.condition.rhs}"
        return str(self.condition)

    @property
    def names(self) -> set[str]:
        return {str(symbol) for symbol in self.condition.free_symbols}

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it is so; where it asks for a remainder of nothing, no code goes on."""
        values = {symbol: sympy.Integer(sizes[str(symbol)]) for symbol in self.condition.free_symbols}
        try:
            return bool(self.condition.xreplace(values) != sympy.false)
        except ZeroDivisionError:
            return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One of the ways that the module's code goes, by the sizes at which it does."""

    relations: Sequence[Relation]
    bounds: Bounds

    def broken(self, sizes: Mapping[str, int]) -> Relation | None:
        """The first of its relations that is not so."""
        return next((each for each in self.relations if not each.holds(sizes)), None)

    def holds(self, sizes: Mapping[str, int]) -> bool:
        return beyond(self.bounds, sizes) is None and self.broken(sizes) is None


def sizes_around(names: Iterable[str], defaults: Mapping[str, int], bounds: Bounds) -> Iterator[dict[str, int]]:
    """Sizes of these dimensions within the bounds, with the defaults of all others, those like the defaults first.

    None is below 2, which torch takes every size for.
    """
    order = sorted(names)
    each = int(_MOST_POINTS ** (1 / max(len(order), 1)))
    points = product(*(_near(defaults[name], bounds.get(name, {}))[:each] for name in order))
    most = max(_MOST_ELEMENTS, 4 * prod(defaults.values()))

    def far(point: Sequence[int]) -> float:
        return sum(abs(log(size / defaults[name])) for name, size in zip(order, point, strict=True))

    for point in sorted(points, key=far):
        sizes = {**defaults, **dict(zip(order, point, strict=True))}
        if prod(sizes.values()) <= most:
            yield sizes


def _near(size: int, bounds: Mapping[str, int]) -> list[int]:
    """Sizes of one dimension to try, the most telling first: as large as another one, twice it, half, one more ..."""
    tried = (
        size, 2 * size, size // 2, size + 1, 64, 3, 4 * size, size - 1, size // 4, 1000, 2, 3 * size, 100, size // 3,
        16, 2 * size + 1, 250, 5, 8 * size, 32, size // 8, 400, 8, 4,
    )  # fmt: skip
    least, most = max(bounds.get("min", 2), 2), bounds.get("max", 8 * max(size, 1000))
    return [each for each in dict.fromkeys(tried) if least <= each <= most]


def relations_of(graph: fx.Graph, symbols: Mapping[str, Any]) -> tuple[Relation, ...]:
    """Those that torch has noted while it captured; ``symbols`` are those of the dimensions, by name."""
    named = {symbol: sympy.Symbol(name, integer=True, positive=True) for name, symbol in symbols.items()}
    sizes = (size for node in graph.nodes if node.op == "placeholder" for size in node.meta["val"].shape)
    known = next(size.node.shape_env for size in sizes if not isinstance(size, int))  # The batch is one at least.
    found: dict[str, Relation] = {}
    for guard in known.guards:
        condition = known.replace(guard.expr)
        if len(condition.free_symbols) > 1 and condition.free_symbols <= named.keys():
            relation = Relation(condition=condition.xreplace(named), line=_line(guard.sloc.framework_loc))
            found.setdefault(str(relation), relation)
    return tuple(found.values())


def _line(frame: FrameSummary | str | None) -> str:
    if not isinstance(frame, FrameSummary) or Path(frame.filename).is_relative_to(_TORCH):
        return ""
    path = Path(frame.filename)
    return "" if path.is_relative_to(_OURS) else f"{path.name}:{frame.lineno}: {frame.line}"


def symbols_of(graph: fx.Graph, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """The symbol of each dynamic dimension in the shapes of a captured graph."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    found: dict[str, Any] = {}
    for node, spec in zip(placeholders, specs, strict=True):
        for axis, name in enumerate(spec.shape):
            if isinstance(name, str):
                found[name] = node.meta["val"].shape[axis].node.expr
    return found
