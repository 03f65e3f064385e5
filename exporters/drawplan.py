"""What the Monte Carlo rewrite will do with a captured graph: which nodes draws reach, and where the batch lies."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from deploykit.errors import ExportError
from deploykit.manifest import Site
from exporters.capture import Captured, own_name
from exporters.kinds import KINDS, mask_shape, site_count, switched_off
from exporters.layout import BatchAxis, find_axis, symbolic_shape
from exporters.noise_ops import NOISE, in_place, noise_value
from exporters.passes import Group, find_passes
from exporters.reach import kept_state, reached_by, writes_seen
from exporters.sites import Draw, arguments, call_with, module_of

__all__ = ["MonteCarloPlan", "Placed", "SitesOff", "plan_monte_carlo", "refuse_state", "refuse_unsupported"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A site with its node and the place of the batch in its mask; None where all rows of a draw share the mask.

    ``units`` is the number of units of a row, None where it is dynamic.
    """

    site: Site
    node: fx.Node
    axis: BatchAxis | None
    units: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MonteCarloPlan:
    """What the rewrite will do with a captured graph.

    ``reached`` holds the nodes that some site reaches; ``axes`` where the batch lies in each tensor; ``passes`` the
    nodes that run together because they are passes of one loop; ``no_row`` those that belong to no row;
    ``writes_seen`` the operations in place that must stay what they are. ``obstacle`` says why the draws cannot be run
    along the batch; None where nothing is known against it.
    """

    captured: Captured
    sites: tuple[Placed, ...]
    reached: frozenset[fx.Node]
    axes: Mapping[fx.Node, BatchAxis | None]
    passes: Mapping[fx.Node, Group]
    no_row: frozenset[fx.Node]
    writes_seen: frozenset[fx.Node]
    obstacle: str | None

    @property
    def sites_of(self) -> Mapping[fx.Node, list[Placed]]:
        found: dict[fx.Node, list[Placed]] = {}
        for placed in self.sites:
            found.setdefault(placed.node, []).append(placed)
        return found

    @property
    def nodes_total(self) -> int:
        return sum(node.op == "call_function" for node in self.captured.graph.nodes)

    @property
    def nodes_once(self) -> int:
        return self.nodes_total - len(self.reached)


def plan_monte_carlo(
    captured: Captured, draws: Sequence[Draw], batch_name: str, example: Sequence[Tensor]
) -> MonteCarloPlan:
    """Find what runs once, where the batch lies, and give the sites their numbers.

    Raises:
        ExportError: a kind of randomness that cannot be kept, or a mask of which it is not known where its rows lie.
    """
    refuse_unsupported(draws)
    symbol = captured.symbols[batch_name]
    reached = reached_by(captured.graph, [draw.node for draw in draws])
    moved = _Movement(captured, draws, example)
    axes, obstacles = _find_axes(captured.graph, symbol, moved)
    each = [draw for draw in draws for _ in range(site_count(str(draw.kind), arguments(draw.node)))]
    placed = tuple(_place(index, draw, axes, obstacles, captured.symbols, symbol) for index, draw in enumerate(each))
    shared = (f"{found.site.module}: has one mask for all rows" for found in placed if _is_shared(found, axes))
    seen = frozenset(writes_seen(captured.graph))
    no_row = frozenset(node for node in reached if axes[node] is None and isinstance(node.meta.get("val"), Tensor))
    alone = no_row | {user for node in no_row for user in node.users}
    return MonteCarloPlan(
        captured=captured, sites=placed, reached=reached, axes=axes, no_row=no_row, writes_seen=seen,
        passes=find_passes(captured.graph, reached - alone),
        obstacle=next(iter([*obstacles.values(), *shared]), None),
    )  # fmt: skip


def refuse_unsupported(draws: Sequence[Draw]) -> None:
    """Refuse every random operation that has no rewrite, by the name of its module.

    Raises:
        ExportError: lists all of them.
    """
    unsupported = [f"{draw.module}: {draw.operation}" for draw in draws if draw.kind is None]
    if unsupported:
        raise ExportError(
            "random operations that cannot be exported faithfully yet: "
            + "; ".join(unsupported)
            + ". Supported are dropout, feature and alpha dropout in any form, the dropout inside attention, LSTM, GRU "
            "and RNN, and rand, rand_like, uniform_, randn, randn_like, normal, normal_, bernoulli, bernoulli_, "
            "exponential_ (so gumbel_softmax) and rrelu without a generator. "
            "Replace these operations, or export without --mc-draws if they are off in evaluation"
        )


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


def _find_axes(graph: fx.Graph, symbol: Any, moved: "_Movement") -> tuple[Axes, Mapping[fx.Node, str]]:
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
        carrying = any(symbol in _symbols_of(source) for source in node.all_input_nodes)
        if axes[node] is None and carrying and node in moved.reached and isinstance(node.meta.get("val"), Tensor):
            obstacles[node] = f"{node.name} ({node.target}): has no batch dimension but depends on a dropout"
    return axes, obstacles


def _symbols_of(node: fx.Node) -> set[Any]:
    return {symbol for size in symbolic_shape(node) for symbol in size.free_symbols}


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
        if source in obstacles and symbol in _symbols_of(source):
            raise ExportError(f"{draw.module}: {draw.operation}: {obstacles[source]}")
    shape = symbolic_shape(draw.node) if noise else mask_shape(str(draw.kind), given, _shape_of)
    found = (axes[source] for source in sources)
    # A mask that is the same along the batch is shared by all rows, as it is in the module itself.
    axis = next((at for at in found if at and symbol in _symbols_at(shape, at.dimension)), None)
    units = sympy.simplify(sympy.prod(shape) / (1 if axis is None else symbol))
    operations = [node for node in draw.node.graph.nodes if node.op == "call_function"]
    site = Site(
        index=index, module=draw.module, kind=str(draw.kind), p=draw.p,
        shape=tuple(_size_name(size, symbols) for size in shape),
        position=operations.index(draw.node) + 1, feeds=tuple(sorted({_operation(user) for user in draw.node.users})),
    )  # fmt: skip
    return Placed(site=site, node=draw.node, axis=axis, units=int(units) if units.is_Integer else None)


def _symbols_at(shape: Sequence[Any], dimension: int) -> set[Any]:
    return set(sympy.sympify(shape[dimension]).free_symbols) if dimension < len(shape) else set()


def _is_shared(placed: Placed, axes: Axes) -> bool:
    """Whether rows meet a mask that is one for all of them in an operation that has no form for a mask per draw."""
    has_rows = axes[placed.node] is not None or not isinstance(placed.node.meta.get("val"), Tensor)
    return placed.axis is None and (has_rows or placed.site.kind in ("attention_dropout", "recurrent_dropout"))


def _operation(node: fx.Node) -> str:
    """``linear`` for ``aten.linear.default``; ``output`` for what the graph gives back."""
    target = node.target
    return target._schema.name.rpartition("::")[2] if isinstance(target, torch._ops.OpOverload) else node.name


def _shape_of(value: Any) -> tuple[Any, ...]:
    """The symbolic shape of a node, or of the first of several."""
    return symbolic_shape(value[0] if isinstance(value, (list, tuple)) else value)


def _size_name(size: Any, symbols: Mapping[str, Any]) -> int | str:
    expression = sympy.sympify(size)
    return int(expression) if expression.is_Integer else str(expression.subs({s: name for name, s in symbols.items()}))


class _Movement(Mapping[fx.Node, Tensor]):
    """Which elements of each node change when row 0 of the inputs does; computed when first asked for."""

    def __init__(self, captured: Captured, draws: Sequence[Draw], example: Sequence[Tensor]) -> None:
        self.sites = frozenset(draw.node for draw in draws)
        self.reached = reached_by(captured.graph, list(self.sites))
        self._captured, self._example = captured, example
        self._changed: dict[fx.Node, Tensor] | None = None
        for node in captured.graph.nodes:
            node.meta["probe_batch"] = example[0].shape[0]

    def __getitem__(self, node: fx.Node) -> Tensor:
        if self._changed is None:
            self._changed = self._probe()
        return self._met(node, self._changed) if node.target in NOISE else self._changed[node]

    def __iter__(self) -> Iterator[fx.Node]:
        return iter(self._changed or {})

    def __len__(self) -> int:
        return len(self._changed or {})

    @staticmethod
    def _met(node: fx.Node, changed: Mapping[fx.Node, Tensor]) -> Tensor:
        """Noise holds nothing of the inputs; where its rows lie is told by the first tensor it is combined with."""
        alike = {node}
        for each in node.graph.nodes:
            if each in changed and changed[each].shape == changed[node].shape and alike & set(each.all_input_nodes):
                if bool(changed[each].any()):
                    return changed[each]
                alike.add(each)
        raise ExportError(
            f"{module_of(node)}: {node.name} has the shape {list(map(str, symbolic_shape(node)))}, in which the batch "
            "is folded with another dimension, and meets no tensor that tells in which order; draw it unfolded"
        )

    def _probe(self) -> dict[fx.Node, Tensor]:
        # Another row's values are always valid ones, whatever the inputs mean.
        before = self._record([tensor.clone() for tensor in self._example])
        after = self._record([torch.cat([tensor[1:2], tensor[1:]]) for tensor in self._example])
        return {node: before[node] != after[node] for node in before if before[node].shape == after[node].shape}

    def _record(self, inputs: Sequence[Tensor]) -> dict[fx.Node, Tensor]:
        runner = SitesOff(self._captured.module, self.sites, record=True)
        runner.run(*inputs)
        return runner.seen


class SitesOff(fx.Interpreter):
    """Run a captured graph with its dropouts replaced by the identity and other noise by its mean.

    With ``record``, ``seen`` keeps a copy of every tensor, which for a large model is a lot of memory.
    """

    def __init__(self, module: fx.GraphModule, sites: Iterable[fx.Node], *, record: bool = False) -> None:
        super().__init__(module)
        self._sites = frozenset(sites)
        self._record = record
        self.seen: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = self._without_drawing(n) if n in self._sites else super().run_node(n)
        if self._record and isinstance(value, Tensor):
            self.seen[n] = value.detach().clone()
        return value

    def _without_drawing(self, node: fx.Node) -> Any:
        given = fx.map_arg(arguments(node), self.env.__getitem__)
        kind = KINDS[node.target]
        if node.target not in NOISE:
            return call_with(node.target, switched_off(kind, given))
        value = noise_value(kind, given, None)
        return given["input"].copy_(value) if in_place(node.target) else value
