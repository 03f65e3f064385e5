"""What the Monte Carlo rewrite will do with a captured graph: which nodes draws reach, and where the batch lies."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
from torch import Tensor, fx
from torch._ops import HigherOrderOperator
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from deploykit.errors import ExportError
from deploykit.manifest import Site
from exporters.capture.explain import with_functions
from exporters.capture.graph import Captured, own_name
from exporters.capture.reach import kept_state, reached_by, writes_seen
from exporters.noise.kinds import mask_shape, site_count
from exporters.noise.noise_ops import NOISE
from exporters.noise.sites import Draw, arguments, module_of, operation_of
from exporters.rewrite.equalrows import cuts_of_equal_rows
from exporters.rewrite.layout import BatchAxis, find_axis, named_size, symbolic_shape, symbols_of, takes
from exporters.rewrite.passes import Group, find_passes
from exporters.rewrite.probe import Movement

__all__ = [
    "Asked", "MonteCarloPlan", "Placed", "plan_monte_carlo", "refuse_functions", "refuse_state", "refuse_unsupported",
]  # fmt: skip


_CHOOSE = (
    "What torch.multinomial(p, k) and Categorical(p) choose, (p / torch.empty_like(p).exponential_()).topk(k).indices "
    "chooses as well. "
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A site with its node and the place of the batch in its mask; None where all rows of a draw share the mask.

    ``sizes`` are those of a row's mask, None where they are dynamic.
    """

    site: Site
    node: fx.Node
    axis: BatchAxis | None
    sizes: tuple[int | None, ...]

    @property
    def units(self) -> int | None:
        """The number of units of a row, None where it is dynamic."""
        known = [size for size in self.sizes if size is not None]
        return math.prod(known) if len(known) == len(self.sizes) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A mask that the module asks for; ``placed`` is None where no output needs it."""

    kind: str
    p: float | None
    placed: Placed | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MonteCarloPlan:
    """What the rewrite will do with a captured graph.

    ``reached`` holds the nodes that some site reaches; ``axes`` where the batch lies in each tensor, and ``symbol`` is
    the batch in their sizes; ``passes`` the nodes that run together because they are passes of one loop; ``no_row``
    those that belong to no row; ``writes_seen`` the operations in place that must stay what they are; ``equal`` what
    takes so many of rows that are all the same. ``obstacle`` says why the draws cannot be run along the batch; None
    where nothing is known against it.
    """

    captured: Captured
    sites: tuple[Placed, ...]
    reached: frozenset[fx.Node]
    axes: Mapping[fx.Node, BatchAxis | None]
    passes: Mapping[fx.Node, Group]
    no_row: frozenset[fx.Node]
    writes_seen: frozenset[fx.Node]
    equal: frozenset[fx.Node]
    obstacle: str | None
    symbol: Any

    @property
    def sites_of(self) -> Mapping[fx.Node, list[Placed]]:
        found: dict[fx.Node, list[Placed]] = {}
        for placed in self.sites:
            found.setdefault(placed.node, []).append(placed)
        return found

    @property
    def asked(self) -> Iterator[Asked]:
        """Every mask that the module asks for, in its order."""
        placed = {node: iter(sites) for node, sites in self.sites_of.items()}
        for node, kind, p in self.captured.asked:
            yield Asked(kind=kind, p=p, placed=next(placed[node]) if node in placed else None)

    @property
    def nodes_total(self) -> int:
        return sum(node.op == "call_function" for node in self.captured.graph.nodes)

    @property
    def nodes_once(self) -> int:
        """An input that draws are written into is reached, and no operation."""
        return self.nodes_total - sum(node.op == "call_function" for node in self.reached)


def plan_monte_carlo(
    captured: Captured, draws: Sequence[Draw], batch_name: str, example: Sequence[Tensor]
) -> MonteCarloPlan:
    """Find what runs once, where the batch lies, and give the sites their numbers; ``draws`` have a rewrite each.

    Raises:
        ExportError: a mask of which it is not known where its rows lie.
    """
    symbol = captured.symbols[batch_name]
    reached = reached_by(captured.graph, [draw.node for draw in draws])
    moved = Movement(captured, draws, example)
    axes, obstacles = _find_axes(captured.graph, symbol, moved)
    each = [draw for draw in draws for _ in range(site_count(str(draw.kind), arguments(draw.node)))]
    placed = tuple(_place(index, draw, axes, obstacles, captured.symbols, symbol) for index, draw in enumerate(each))
    shared = (f"{found.site.module}: has one mask for all rows" for found in placed if _is_shared(found, axes))
    no_row = frozenset(node for node in reached if axes[node] is None and isinstance(node.meta.get("val"), Tensor))
    alone = no_row | {user for node in no_row for user in node.users}
    return MonteCarloPlan(
        captured=captured, sites=placed, reached=reached, axes=axes, no_row=no_row,
        writes_seen=writes_seen(captured.graph), equal=cuts_of_equal_rows(captured),
        passes=find_passes(captured.graph, reached - alone), obstacle=next(iter([*obstacles.values(), *shared]), None),
        symbol=symbol,
    )  # fmt: skip


def refuse_unsupported(draws: Sequence[Draw]) -> None:
    """Refuse every random operation that has no rewrite, by the name of its module.

    Raises:
        ExportError: lists all of them.
    """
    unsupported = [f"{draw.module}: {draw.operation}" for draw in draws if draw.kind is None]
    if unsupported:
        chosen = any(draw.operation == "multinomial" for draw in draws)
        raise ExportError(
            "random operations that cannot be exported faithfully yet: "
            + "; ".join(unsupported)
            + ". Supported are dropout, feature and alpha dropout in any form, the dropout inside attention, LSTM, GRU "
            "and RNN, and rand, rand_like, uniform_, randn, randn_like, normal, normal_, bernoulli, bernoulli_, "
            "exponential_ (so gumbel_softmax) and rrelu without a generator. "
            + (_CHOOSE if chosen else "")
            + "Replace these operations, or export without --mc-draws if they are off in evaluation"
        )


def refuse_functions(graph: fx.Graph) -> None:
    """Refuse operations that take functions, as ``torch.cond`` does.

    Raises:
        ExportError: names the module and the operation.
    """
    for node in graph.nodes:
        if isinstance(node.target, HigherOrderOperator):
            raise ExportError(f"{module_of(node)}: {with_functions(str(node.target))}")


def refuse_state(captured: Captured) -> None:
    """Refuse a graph in which one call would change the outputs of the next.

    Raises:
        ExportError: names the buffers that are written.
    """
    written = kept_state(captured.graph)
    if written:
        raise ExportError(
            f"{', '.join(map(own_name, written))}: written in forward and used for an output, so that a row's result "
            "would depend on the calls before it. An exported file keeps no state; compute with a copy instead"
        )


Axes = Mapping[fx.Node, BatchAxis | None]


def _find_axes(graph: fx.Graph, symbol: Any, moved: Movement) -> tuple[Axes, Mapping[fx.Node, str]]:
    """Where the batch lies in each node; and why that cannot be said of those that draws reach, or that meet such."""
    axes: dict[fx.Node, BatchAxis | None] = dict.fromkeys(graph.nodes)
    obstacles: dict[fx.Node, str] = {}
    for node in graph.nodes:
        try:
            axes[node] = find_axis(node, symbol, moved)
        except ExportError as error:
            # A tensor such as a matrix of distances between rows is of no concern unless draws reach it.
            if node in moved.reached or any(user in moved.reached for user in node.users):
                obstacles[node] = str(error)
            continue
        if axes[node] is not None or not takes(node, symbol):
            continue
        value = node.meta.get("val")
        if node in moved.reached and (isinstance(value, Tensor) or _are_places(value)):
            obstacles[node] = f"{node.name} ({node.target}): has no batch dimension but depends on a dropout"
        elif _are_places(value) and reached_by(graph, [node]) & moved.reached:
            # They would be places among the rows of the first draw.
            obstacles[node] = f"{node.name} ({node.target}): finds places for values that depend on a dropout"
    return axes, obstacles


def _are_places(value: object) -> bool:
    """Whether these are places of which there are as many as the values say, as ``torch.where(mask)`` gives them."""
    return isinstance(value, (list, tuple)) and bool(free_unbacked_symbols(value))


def _place(
    index: int,
    draw: Draw,
    axes: Axes,
    obstacles: Mapping[fx.Node, str],
    symbols: Mapping[str, Any],
    symbol: Any,
) -> Placed:
    given, noise = arguments(draw.node), draw.node.target in NOISE
    tensors = [value for value in given.values() if isinstance(value, fx.Node)]
    # The weights of an attention carry the batch where its queries do, or else its keys.
    sources = [draw.node] if noise else tensors[: 2 if draw.kind == "attention_dropout" else 1]
    for source in sources:
        if source in obstacles and symbol in symbols_of(source):
            subject = draw.module if source is draw.node else f"{draw.module}: {draw.operation}"
            by_values = bool(free_unbacked_symbols(source.meta["val"]))
            raise ExportError(f"{subject}: {obstacles[source]}", part=draw.module, by_values=by_values)
    shape = symbolic_shape(draw.node) if noise else mask_shape(str(draw.kind), given, _shape_of)
    found = (axes[source] for source in sources)
    # A mask that is the same along the batch is shared by all rows, as it is in the module itself.
    axis = next((at for at in found if at and symbol in _symbols_at(shape, at.dimension)), None)
    row = [size / symbol if axis and at == axis.dimension else size for at, size in enumerate(shape)]
    sizes = tuple(_fixed(sympy.simplify(size)) for size in row)
    operations = [node for node in draw.node.graph.nodes if node.op == "call_function"]
    site = Site(
        index=index, module=draw.module, kind=str(draw.kind), p=draw.p,
        shape=tuple(_size_name(size, symbols) for size in shape),
        position=operations.index(draw.node) + 1, feeds=tuple(sorted({operation_of(user) for user in draw.node.users})),
    )  # fmt: skip
    return Placed(site=site, node=draw.node, axis=axis, sizes=sizes)


def _fixed(size: Any) -> int | None:
    return int(size) if size.is_Integer else None


def _symbols_at(shape: Sequence[Any], dimension: int) -> set[Any]:
    return set(sympy.sympify(shape[dimension]).free_symbols) if dimension < len(shape) else set()


def _is_shared(placed: Placed, axes: Axes) -> bool:
    """Whether rows meet a mask that is one for all of them in an operation that has no form for a mask per draw."""
    has_rows = axes[placed.node] is not None or not isinstance(placed.node.meta.get("val"), Tensor)
    return placed.axis is None and (has_rows or placed.site.kind in ("attention_dropout", "recurrent_dropout"))


def _shape_of(value: Any) -> tuple[Any, ...]:
    """The symbolic shape of a node, or of the first of several."""
    return symbolic_shape(value[0] if isinstance(value, (list, tuple)) else value)


def _size_name(size: Any, symbols: Mapping[str, Any]) -> int | str:
    expression = sympy.sympify(size)
    return int(expression) if expression.is_Integer else named_size(expression, symbols)
