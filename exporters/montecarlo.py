"""The Monte Carlo rewrite: one graph that draws T times, with everything before the first site run once.

``MonteCarloModule`` runs a captured graph node by node. A node that no site reaches runs once on the B rows. What it
hands to a node that a site does reach is tiled T times along the batch, draw-major, and that part runs once on T*B
rows. At a site the values are multiplied by a keyed mask. Capturing this module again gives the graph to export.

The rewrite assumes that rows do not mix after the first site. That is not taken on trust: ``exporters.parity`` compares
every export with the user's own module run draw by draw, and refuses where they differ.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn

from deploykit.errors import ExportError
from exporters.drawplan import MonteCarloPlan, Placed
from exporters.kinds import KINDS, mask_shape, perform
from exporters.layout import BatchAxis, symbolic_shape
from exporters.mask_ops import keep, row_keys, unit_keys
from exporters.outputs import Report, Value, make_reports
from exporters.reach import writes_seen
from exporters.sites import arguments
from exporters.tasks import OutputTask

__all__ = ["MonteCarloModule"]


class MonteCarloModule(nn.Module):
    """``forward(*inputs, sample_ids, draw_ids, seed)`` gives the statistics of the draws, which ``reports`` names.

    ``sample_ids`` (B) int64, ``draw_ids`` (T) int64, ``seed`` () int64.
    """

    def __init__(
        self,
        plan: MonteCarloPlan,
        names: Sequence[str],
        *,
        mode: Literal["independent", "shared"],
        summary: Literal["statistics", "first_draw"],
        tasks: Mapping[str, OutputTask],
        keep_draws: bool,
    ) -> None:
        super().__init__()
        self.body = plan.captured.module
        self.plan = plan
        self.names = tuple(names)
        self.shared = mode == "shared"
        self.summary = summary
        self.tasks = dict(tasks)
        self.keep_draws = keep_draws
        self.writes_seen = writes_seen(plan.captured.graph)
        self.sites: dict[fx.Node, list[Placed]] = {}
        for placed in plan.sites:
            self.sites.setdefault(placed.node, []).append(placed)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(report.value for report in self.reports(*tensors))

    def reports(self, *tensors: Tensor) -> list[Report]:
        """The outputs with what they are."""
        *inputs, sample_ids, draw_ids, seed = tensors
        keys = row_keys(seed, sample_ids, draw_ids, shared=self.shared)
        run = _Run(self, inputs, sample_ids.shape[0], draw_ids.shape[0], keys)
        nodes = zip(self.names, run.output_nodes(), strict=True)
        values = {name: self._value(name, node, run) for name, node in nodes}
        return make_reports(values, self.tasks, keep_draws=self.keep_draws)

    def _value(self, name: str, node: fx.Node, run: "_Run") -> Value:
        if node not in self.plan.reached:
            return Value(tensor=run.once[node], drawn=False)
        if self.plan.axes[node] != BatchAxis(dimension=0):
            raise ExportError(
                f"output {name!r}: has shape {list(map(str, symbolic_shape(node)))}; "
                f"its first dimension must be the batch; leave it out with --task {name}=none"
            )
        value = run.tiled[node]
        draws = value.reshape(run.draws, run.batch, *value.shape[1:])
        return Value(tensor=draws[0], drawn=False) if self.summary == "first_draw" else Value(tensor=draws, drawn=True)


class _Run:
    """One pass: values of nodes on the B rows (``once``), on the T*B rows (``tiled``)."""

    def __init__(self, owner: MonteCarloModule, inputs: Sequence[Tensor], batch: int, draws: int, keys: Any) -> None:
        self.owner, self.plan, self.batch, self.draws, self.keys = owner, owner.plan, batch, draws, keys
        self.once: dict[fx.Node, Any] = {}
        self.tiled: dict[fx.Node, Any] = {}
        self._inputs = iter(inputs)
        for node in self.plan.captured.graph.nodes:
            if node.op != "output":
                self._step(node)

    def output_nodes(self) -> list[fx.Node]:
        (output,) = (node for node in self.plan.captured.graph.nodes if node.op == "output")
        found: list[fx.Node] = []
        fx.map_arg(output.args[0], found.append)
        return found

    def _step(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.once[node] = next(self._inputs)
            if node in self.plan.reached:
                # A draw is written into it, so that it must be one tensor and not a new copy for each use.
                self.tiled[node] = self._on_tiled_rows(node).clone()
        elif node.op == "get_attr":
            self.once[node] = operator.attrgetter(str(node.target))(self.owner.body)
        elif node in self.owner.sites:
            self.tiled[node] = self._site(node)
        elif node in self.plan.reached:
            self.tiled[node] = _call(node, self._on_tiled_rows)
        else:
            self.once[node] = _call(node, self.once.__getitem__)
            if not isinstance(node.meta.get("val"), Tensor):
                self._size_on_tiled_rows(node)

    def _size_on_tiled_rows(self, node: fx.Node) -> None:
        """Sizes that are computed from the batch are needed twice: of B rows and of T*B."""
        if node.target is torch.ops.aten.sym_size.int:
            source, axis = cast(tuple[fx.Node, int], node.args)
            value = self.once[node]
            place = self.plan.axes[source]
            carries = place is not None and place.dimension == axis % source.meta["val"].ndim
            self.tiled[node] = value * self.draws if carries else value
        elif isinstance(node.meta.get("val"), (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)):
            self.tiled[node] = _call(node, self._on_tiled_rows)

    def _on_tiled_rows(self, node: fx.Node) -> Any:
        if node in self.tiled:
            return self.tiled[node]
        value, axis = self.once[node], self.plan.axes[node]
        return value if axis is None else axis.tile(value, self.batch, self.draws)

    def _site(self, node: fx.Node) -> Any:
        kind = KINDS[node.target]
        given = fx.map_arg(arguments(node), self._on_tiled_rows)
        shape = mask_shape(kind, given, _shape_of)
        sites = iter(self.owner.sites[node])
        value = perform(
            node.target, kind, given, self.owner.sites[node][0].site.p, lambda: self._kept(next(sites), shape)
        )
        return given["input"].copy_(value) if node in self.owner.writes_seen else value

    def _kept(self, placed: Placed, shape: Sequence[int]) -> Tensor:
        """Which units of a site are kept, in a shape that its operation can use."""
        outer, _, inner = placed.axis.split(shape, self.batch * self.draws)
        units = unit_keys(placed.site.index, outer * inner, self.keys[0].device)
        return placed.axis.place(keep(self.keys, units, placed.site.p), shape)


def _shape_of(value: Any) -> tuple[int, ...]:
    return tuple((value[0] if isinstance(value, (list, tuple)) else value).shape)


def _call(node: fx.Node, value_of: Any) -> Any:
    if node.op != "call_function":
        raise ExportError(f"{node.name}: the graph holds a {node.op}, which cannot be rewritten")
    args, kwargs = cast(Any, fx.map_arg((node.args, node.kwargs), value_of))
    # The size is asked of the tensor in the way that a capture can follow.
    function = _size if node.target is torch.ops.aten.sym_size.int else cast(Any, node.target)
    return function(*args, **kwargs)


def _size(tensor: Tensor, axis: int) -> Any:
    return tensor.shape[axis]
