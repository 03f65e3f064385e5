"""Run a captured graph for all draws at once: every node on the B rows, or on the T*B rows of T draws.

A node that no site reaches runs once on the B rows. What it hands to a node that a site does reach is tiled T times
along the batch, draw-major. The L passes of a loop that the user wrote are tiled further: they run as one on L*T*B
rows, pass-major, and are taken apart where the loop ends.

A value that depends on a draw but belongs to no row, such as a weight behind a dropout, stands apart: (T, ...).
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from deploykit import masks
from exporters.capture.reach import touched_by_writes, written
from exporters.capture.strides import in_order
from exporters.noise.kinds import KINDS, mask_shape, perform
from exporters.noise.mask_ops import Keys, unit_numbers
from exporters.noise.noise_ops import sample
from exporters.noise.sites import arguments, made_for, module_of
from exporters.rewrite.drawplan import MonteCarloPlan, Placed
from exporters.rewrite.layout import BatchAxis
from exporters.rewrite.perdraw import NotBatchedError, call_per_draw
from exporters.rewrite.rowplaces import numbers_of_rows, stay_exact
from exporters.rewrite.wide import find_wide, linear_of_dropped

__all__ = ["TiledRun", "call_node", "given_values", "shape_of"]


class TiledRun:
    """One evaluation. ``once`` holds the values of nodes on the B rows, ``tiled`` those on L*T*B rows, by (node, L).

    ``per_draw`` holds the values that belong to no row. ``keys`` are the row keys, ``draw_keys()`` gives those of no
    row.
    """

    def __init__(
        self,
        plan: MonteCarloPlan,
        inputs: Sequence[Tensor],
        *,
        batch: int,
        draws: int,
        keys: Keys,
        draw_keys: Callable[[], Keys],
    ) -> None:
        self.plan, self.batch, self.draws, self.keys, self.draw_keys = plan, batch, draws, keys, draw_keys
        self.once: dict[fx.Node, Any] = given_values(plan, inputs)
        self.per_draw: dict[fx.Node, Tensor] = {}
        self._wide = find_wide(plan)
        self._numbers = numbers_of_rows(plan, plan.captured.graph.nodes)
        self._written = touched_by_writes(plan.captured.graph)
        self._left_out = frozenset[fx.Node]().union(*(between for _, between in self._wide.values()))
        self.tiled: dict[tuple[fx.Node, int], Any] = {}
        for node in plan.captured.graph.nodes:
            if node.op == "placeholder" and node in plan.reached:
                # A draw is written into it, so that it must be one tensor and not a new copy for each use.
                self.tiled[node, 1] = self._tile(node, 1).clone()
            elif node.op == "call_function":
                with made_for(node):
                    self._step(node)

    def drawn(self, node: fx.Node) -> Tensor:
        """The value of ``node``, whose first dimension is the batch, in every draw: (T, B, ...)."""
        # A copy has plain strides; of others the capture may not know that they fit every batch size.
        value = self._on_rows(node, 1).clone(memory_format=torch.contiguous_format)
        found: Tensor = value.reshape(self.draws, self.batch, *value.shape[1:])
        return found

    def _step(self, node: fx.Node) -> None:
        group = self.plan.passes.get(node, (node,))
        if node not in self.plan.reached:
            self.once[node] = call_node(node, self.once.__getitem__)
        elif node in self._wide:
            self.tiled[node, 1] = self._linear_of_dropped(node, self._wide[node][0])
        elif node in self._left_out:
            pass  # A part of the linear layer behind it.
        elif node in self.plan.no_row:
            is_site = node in self.plan.sites_of
            self.per_draw[node] = self._site_of_no_row(node) if is_site else self._for_each_draw(node)
        elif self._meets_no_row(node):
            if not isinstance(node.meta.get("val"), Tensor):
                raise NotBatchedError(f"{module_of(node)}: {node.target} takes a weight that differs between draws")
            self.tiled[node, 1] = self._axis(node).draws_folded(self._for_each_draw(node), self.batch)
        elif node is group[0]:
            passes = len(group)
            for target in written(node):
                # Tiled rows may share memory, which must not be written to, whether or not they were read before.
                if target not in self.plan.reached or (target, passes) not in self.tiled:
                    self.tiled[target, passes] = self._on_rows(target, passes).clone()
            is_site = node in self.plan.sites_of
            self.tiled[node, passes] = self._site(group) if is_site else self._again(node, passes)

    def _on_rows(self, node: fx.Node, passes: int) -> Any:
        """The value on the rows of all draws and of all ``passes``."""
        if (node, passes) not in self.tiled:
            self.tiled[node, passes] = self._made_for_rows(node, passes)
        return self.tiled[node, passes]

    def _made_for_rows(self, node: fx.Node, passes: int) -> Any:
        if not isinstance(node.meta.get("val"), Tensor):
            return self._plain(node, passes)
        if node not in self.plan.reached:
            return self._again(node, passes) if node in self._numbers else self._tile(node, passes)
        axis = self.plan.axes[node]
        if passes == 1:
            group = self.plan.passes[node]
            together = self.tiled[group[0], len(group)]
            return axis.select(together, self.batch * self.draws, len(group), group.index(node)) if axis else together
        value = self.tiled[node, 1]
        return axis.tile(value, self.batch * self.draws, passes) if axis else value

    def _tile(self, node: fx.Node, passes: int) -> Any:
        axis = self.plan.axes[node]
        return axis.tile(in_order(self.once[node]), self.batch, self.draws * passes) if axis else self.once[node]

    def _plain(self, node: fx.Node, passes: int) -> Any:
        """What is no tensor: sizes that are computed from the batch are larger when there are more rows."""
        if node.target is torch.ops.aten.sym_size.int:
            source, axis = cast(tuple[fx.Node, int], node.args)
            return (
                self._on_rows(source, passes).shape[axis] if source in self.plan.reached else self._size(node, passes)
            )
        return self._again(node, passes) if node.op == "call_function" and node.all_input_nodes else self.once[node]

    def _again(self, node: fx.Node, passes: int) -> Any:
        # Rows are found by their numbers, of which there are more when there are more rows.
        is_number = node in self._numbers and isinstance(node.meta.get("val"), Tensor)
        if is_number and (node in self._written or not stay_exact(node)):
            raise NotBatchedError(f"{module_of(node)}: {node.target} makes something else of the numbers of more rows")
        return call_node(node, lambda n: self._on_rows(n, passes))

    def _size(self, node: fx.Node, passes: int) -> Any:
        """Without tiling the tensor only to ask for its size."""
        source, axis = cast(tuple[fx.Node, int], node.args)
        place = self.plan.axes[source]
        carries = place is not None and place.dimension == axis % source.meta["val"].ndim
        return self.once[node] * (self.draws * passes) if carries else self.once[node]

    def _meets_no_row(self, node: fx.Node) -> bool:
        is_size = isinstance(node.meta.get("val"), (int, torch.SymInt))
        return not is_size and any(source in self.plan.no_row for source in node.all_input_nodes)

    def _for_each_draw(self, node: fx.Node) -> Tensor:
        """An operation with an argument that belongs to no row: (T, ...)."""
        args, kwargs = cast(Any, fx.map_arg((node.args, node.kwargs), self._draws_first))
        return call_per_draw(node, args, kwargs)

    def _draws_first(self, node: fx.Node) -> Any:
        """(T or 1, ...) of a tensor; of a size, what it is on the B rows."""
        if node in self.per_draw:
            return self.per_draw[node]
        if not isinstance(node.meta.get("val"), Tensor):
            return self.once[node] if node in self.once else self._size_in_a_draw(node)
        if node not in self.plan.reached:
            return self.once[node].unsqueeze(0)
        return self._axis(node).draws_first(self._on_rows(node, 1), self.batch, self.draws)

    def _size_in_a_draw(self, node: fx.Node) -> Any:
        if node.target is not torch.ops.aten.sym_size.int:
            return call_node(node, self._size_in_a_draw)
        source, axis = cast(tuple[fx.Node, int], node.args)
        return self._draws_first(source).shape[axis % source.meta["val"].ndim + 1]

    def _axis(self, node: fx.Node) -> BatchAxis:
        return cast(BatchAxis, self.plan.axes[node])

    def _site_of_no_row(self, node: fx.Node) -> Tensor:
        """A random operation on a tensor that belongs to no row: one mask in each draw, for all rows."""
        (placed,), kind = self.plan.sites_of[node], KINDS[node.target]
        given = fx.map_arg(arguments(node), self._draws_first)
        shape = mask_shape(kind, given, lambda value: tuple(value.shape[1:]))
        keys = self.draw_keys()
        units = unit_numbers(placed.sizes, shape, keys[0].device)
        drawn = sample(kind, keys, [placed.site.index], units, placed.site.p).reshape(-1, *shape)
        return cast(Tensor, perform(node.target, kind, given, placed.site.p, lambda: drawn))

    def _site(self, group: tuple[fx.Node, ...]) -> Any:
        """A random operation with keyed masks, for all passes."""
        node, passes = group[0], len(group)
        kind, source = KINDS[node.target], node.all_input_nodes[0]
        if kind == "dropout" and source not in self.plan.reached and self.plan.axes[source] == BatchAxis(dimension=0):
            return self._first_product(group, source)
        given = fx.map_arg(arguments(node), lambda n: self._on_rows(n, passes))
        shape = mask_shape(kind, given, shape_of)
        sites = zip(*(self.plan.sites_of[each] for each in group), strict=True)
        value = perform(
            node.target, kind, given, self.plan.sites_of[node][0].site.p, lambda: self._kept(next(sites), shape)
        )
        return given["input"].copy_(value) if node in self.plan.writes_seen else value

    def _first_product(self, group: tuple[fx.Node, ...], source: fx.Node) -> Tensor:
        """A dropout of values that are the same in every draw: they are scaled once, and never copied for each draw."""
        sites, values = [self.plan.sites_of[each][0] for each in group], cast(Tensor, self.once[source])
        copies = self.draws * len(group)
        shape = (values.shape[0] * copies, *values.shape[1:])
        # Two dimensions only: torch cannot derive the strides of a product of more where their sizes are symbols.
        mask = self._kept(sites, shape).reshape(copies, -1).to(values.dtype)
        scaled: Tensor = values * masks.scale(cast(float, sites[0].site.p))
        return (mask * scaled.reshape(1, -1)).reshape(shape)

    def _linear_of_dropped(self, node: fx.Node, placed: Placed) -> Tensor:
        """A linear layer with the dropout in front of it, of values that are the same in every draw."""
        weight, bias = (arguments(node).get(name) for name in ("weight", "bias"))
        values = self.once[placed.node.all_input_nodes[0]].flatten(1)
        return linear_of_dropped(
            values, self.keys, placed, self.once[cast(fx.Node, weight)],
            None if bias is None else self.once[bias], draws=self.draws,
        )  # fmt: skip

    def _kept(self, placed: Sequence[Placed], shape: Sequence[int]) -> Tensor:
        """What a site draws, or the sites of all passes, in a shape that the operation can use."""
        axis, site = cast(BatchAxis, placed[0].axis), placed[0].site
        row = axis.row(shape, self.batch * self.draws * len(placed))
        units = unit_numbers(placed[0].sizes, row, self.keys[0].device)
        drawn = sample(site.kind, self.keys, [each.site.index for each in placed], units, site.p)
        return axis.place(drawn.reshape(-1, math.prod(row)), shape)


def given_values(plan: MonteCarloPlan, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
    """What the graph is given: the inputs, and the module's own tensors."""
    feed, module = iter(inputs), plan.captured.module
    return {
        node: next(feed) if node.op == "placeholder" else operator.attrgetter(str(node.target))(module)
        for node in plan.captured.graph.nodes
        if node.op in ("placeholder", "get_attr")
    }


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a tensor, or of the first of several."""
    return tuple((value[0] if isinstance(value, (list, tuple)) else value).shape)


def call_node(node: fx.Node, value_of: Any) -> Any:
    """The operation of ``node`` with the values of its arguments."""
    args, kwargs = cast(Any, fx.map_arg((node.args, node.kwargs), value_of))
    # The size is asked of the tensor in the way that a capture can follow.
    function = _size_of if node.target is torch.ops.aten.sym_size.int else cast(Any, node.target)
    return function(*args, **kwargs)


def _size_of(tensor: Tensor, axis: int) -> Any:
    return tensor.shape[axis]
