"""Run a captured graph one draw after the other: what no site reaches once, the rest once for every draw.

The form for graphs that cannot be run with the draws along the batch (``exporters.rewrite.tiling``), such as a
convolution whose weight is another one in every draw. Captured, it is one loop over the draws: a ``scan`` in torch and
in ONNX.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._higher_order_ops.scan import scan_op

from exporters.capture.reach import owner_of
from exporters.noise.kinds import KINDS, mask_shape, perform
from exporters.noise.mask_ops import Keys, unit_keys, unit_numbers
from exporters.noise.noise_ops import key_sites, sample
from exporters.noise.sites import arguments, made_for
from exporters.rewrite.drawplan import MonteCarloPlan, Placed
from exporters.rewrite.tiling import call_node, given_values, shape_of

__all__ = ["SequentialRun"]


class SequentialRun:
    """One evaluation. ``once`` holds the values of nodes that no site reaches, on the B rows.

    ``keys`` (T*B, 1) are the row keys, ``draw_keys()`` gives those of no row, (T, 1); ``wanted`` the nodes to ask for
    later.
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
        wanted: Sequence[fx.Node],
    ) -> None:
        self.plan, self.batch, self.draws = plan, batch, draws
        self.once: dict[fx.Node, Any] = given_values(plan, inputs)
        for node in plan.captured.graph.nodes:
            if node.op == "call_function" and node not in plan.reached:
                with made_for(node):
                    self.once[node] = call_node(node, self.once.__getitem__)
        self._wanted = tuple(dict.fromkeys(node for node in wanted if node in plan.reached))
        self._given = [node for node in self.once if self._comes_from_outside(node)]
        self._units = dict(self._fixed_units(inputs[0].device))
        self._drawn = dict(zip(self._wanted, self._all_draws(keys, draw_keys()), strict=True))

    def drawn(self, node: fx.Node) -> Tensor:
        """The value of ``node`` in every draw: (T, B, ...)."""
        return self._drawn[node]

    def _comes_from_outside(self, node: fx.Node) -> bool:
        return any(map(self._in_loop, node.users)) and isinstance(self.once[node], (Tensor, torch.SymInt))

    def _in_loop(self, node: fx.Node) -> bool:
        # A loop takes tensors and integers; other numbers that are made of sizes it makes again.
        return node in self.plan.reached or isinstance(self.once.get(node), (torch.SymFloat, torch.SymBool))

    def _fixed_units(self, device: torch.device) -> Iterator[tuple[int, Keys]]:
        """The keys of units where their number is fixed: the same in every draw."""
        for placed in self.plan.sites:
            if placed.units is not None:
                for number in key_sites(placed.site.kind, placed.site.index):
                    yield number, unit_keys(number, placed.units, device)

    def _all_draws(self, keys: Keys, draw_keys: Keys) -> Sequence[Tensor]:
        each = [*(key.reshape(self.draws, self.batch, 1) for key in keys), *(key.unsqueeze(1) for key in draw_keys)]
        fixed = [*map(self._own_memory, self._given), *(word for pair in self._units.values() for word in pair)]
        if not torch.compiler.is_exporting():
            rows = [self._one_draw(*(key[draw] for key in each), *fixed) for draw in range(self.draws)]
            return [torch.stack(values) for values in zip(*rows, strict=True)]

        def step(carried: Tensor, *values: Any) -> list[Tensor]:
            return [carried.clone(), *self._one_draw(*values)]

        # Nothing is carried from one draw to the next, but a scan must carry something.
        found: tuple[Tensor, ...] = scan_op(step, [torch.zeros(1)], each, tuple(fixed))
        return found[1:]

    def _own_memory(self, node: fx.Node) -> Any:
        """Two arguments of a loop must not share memory, as a tensor and its transpose do."""
        value = self.once[node]
        return value.clone() if isinstance(value, Tensor) and owner_of(node) is not node else value

    def _one_draw(self, first: Tensor, second: Tensor, draw_first: Tensor, draw_second: Tensor, *fixed: Any) -> Any:
        """The wanted values. All that a loop works with must be among its arguments."""
        words = iter(fixed[len(self._given) :])
        units = {number: (next(words), next(words)) for number in self._units}
        masks = _Masks((first, second), (draw_first, draw_second), units)
        values = {**self.once, **dict(zip(self._given, fixed, strict=False))}
        for node in self.plan.captured.graph.nodes:
            if node.op == "placeholder" and node in self.plan.reached:
                # A draw is written into it.
                values[node] = values[node].clone()
            elif node.op == "call_function" and self._in_loop(node):
                with made_for(node):
                    values[node] = self._value(node, values.__getitem__, masks)
        return [values[node].clone(memory_format=torch.contiguous_format) for node in self._wanted]

    def _value(self, node: fx.Node, value_of: Callable[[fx.Node], Any], masks: "_Masks") -> Any:
        if node not in self.plan.sites_of:
            return call_node(node, value_of)
        kind, sites = KINDS[node.target], self.plan.sites_of[node]
        given, each = fx.map_arg(arguments(node), value_of), iter(sites)
        shape = mask_shape(kind, given, shape_of)
        value = perform(node.target, kind, given, sites[0].site.p, lambda: masks.of(next(each), shape))
        return given["input"].copy_(value) if node in self.plan.writes_seen else value


class _Masks:
    """What the sites draw in one draw: ``rows`` are its row keys, ``no_row`` the key of masks that all rows share."""

    def __init__(self, rows: Keys, no_row: Keys, units: Mapping[int, Keys]) -> None:
        self._rows, self._no_row, self._units = rows, no_row, units

    def of(self, placed: Placed, shape: Sequence[int]) -> Tensor:
        site, axis = placed.site, placed.axis
        if axis is None:
            units = unit_numbers(placed.sizes, shape, self._no_row[0].device)
            drawn = sample(site.kind, self._no_row, [site.index], units, site.p, self._units)
            return drawn.reshape(tuple(shape))
        units = unit_numbers(placed.sizes, axis.row(shape, self._rows[0].shape[0]), self._rows[0].device)
        return axis.place(sample(site.kind, self._rows, [site.index], units, site.p, self._units), shape)
