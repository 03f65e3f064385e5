"""What a capture takes for granted of several dynamic sizes at once, as that one of them is not the larger.

torch refuses code that asks for a single size, and says nothing where it compares two: the graph has the way that the
example went.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import sympy
from torch import fx

from deploykit.bounds import Bounds
from deploykit.tensors import TensorSpec

__all__ = ["Relation", "relations_of", "symbols_of"]

_MOST = 10_000
"""Sizes that are looked at for one relation: those of four dimensions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A condition on dynamic dimensions, whose symbols have their names."""

    condition: Any

    def __str__(self) -> str:
        if isinstance(self.condition, sympy.core.relational.Relational):
            return f"{self.condition.lhs} {self.condition.rel_op} {self.condition.rhs}"
        return str(self.condition)

    def broken(self, defaults: Mapping[str, int], bounds: Bounds) -> Iterator[dict[str, int]]:
        """Sizes of its dimensions for which it does not hold, those like the defaults first, and none below 2."""
        symbols = sorted(self.condition.free_symbols, key=str)
        for sizes in islice(
            product(*(_near(defaults[str(each)], bounds.get(str(each), {})) for each in symbols)), _MOST
        ):
            values = dict(zip(symbols, map(sympy.Integer, sizes), strict=True))
            if self.condition.xreplace(values) == sympy.false:
                yield {str(symbol): int(size) for symbol, size in values.items()}


def _near(size: int, bounds: Mapping[str, int]) -> list[int]:
    """Sizes of one dimension to try: others that are as large, twice, half, larger or smaller by one are among them."""
    tried = (size, size + 1, size - 1, 2 * size, size // 2, 2 * size + 1, size // 3, 4, 3, 2)
    least, most = max(bounds.get("min", 2), 2), bounds.get("max", 2 * size + 1)
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
            relation = Relation(condition=condition.xreplace(named))
            found.setdefault(str(relation), relation)
    return tuple(found.values())


def symbols_of(graph: fx.Graph, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """The symbol of each dynamic dimension in the shapes of a captured graph."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    found: dict[str, Any] = {}
    for node, spec in zip(placeholders, specs, strict=True):
        for axis, name in enumerate(spec.shape):
            if isinstance(name, str):
                found[name] = node.meta["val"].shape[axis].node.expr
    return found
