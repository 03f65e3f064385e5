"""Run a captured graph without its draws: what each node gives, and which of its elements belong to which row."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from deploykit.errors import ExportError
from exporters.capture.graph import Captured
from exporters.capture.reach import reached_by
from exporters.noise.kinds import KINDS, switched_off
from exporters.noise.noise_ops import NOISE, in_place, noise_value
from exporters.noise.sites import Draw, arguments, call_with, module_of
from exporters.rewrite.layout import FIRST, LAST, named_size, symbolic_shape

__all__ = ["Movement", "SitesOff"]


class Movement:
    """Which elements of a node change with the first row of the inputs and which with the last; found when needed."""

    def __init__(self, captured: Captured, draws: Sequence[Draw], example: Sequence[Tensor]) -> None:
        self.batch = example[0].shape[0]
        self._sites = frozenset(draw.node for draw in draws)
        self.reached = reached_by(captured.graph, list(self._sites))
        self._captured, self._example = captured, example

    def __call__(self, node: fx.Node) -> Tensor | None:
        """``FIRST`` and ``LAST`` by element; None where that cannot be told."""
        changed = self._changed.get(node)
        return self._met(node, changed.shape) if changed is not None and node.target in NOISE else changed

    def _met(self, node: fx.Node, shape: Sequence[int]) -> Tensor:
        """Noise holds nothing of the inputs; where its rows lie is told by the first tensor it is combined with."""
        alike = {node}
        for each in node.graph.nodes:
            changed = self._changed.get(each)
            if changed is None or not alike & set(each.all_input_nodes):
                continue
            narrowed = _narrowed(changed, shape)
            if narrowed is not None and bool(narrowed.any()):
                return narrowed
            if changed.shape == shape:
                alike.add(each)
        sizes = [named_size(size, self._captured.symbols) for size in symbolic_shape(node)]
        raise ExportError(
            f"{module_of(node)}: {node.name} has the shape {sizes}, in which the batch "
            "is folded with another dimension, and meets no tensor that tells in which order; draw it "
            "unfolded, in the shape in which it is used, as torch.rand_like(x) does"
        )

    @cached_property
    def _changed(self) -> dict[fx.Node, Tensor]:
        # Another row's values are always valid ones, whatever the inputs mean.
        before = self._record([tensor.clone() for tensor in self._example])
        first = self._record([torch.cat([tensor[1:2], tensor[1:]]) for tensor in self._example])
        last = self._record([torch.cat([tensor[:-1], tensor[:1]]) for tensor in self._example])
        return {
            node: (value != first[node]).to(torch.uint8) * FIRST | (value != last[node]).to(torch.uint8) * LAST
            for node, value in before.items()
            if value.shape == first[node].shape == last[node].shape
        }

    def _record(self, inputs: Sequence[Tensor]) -> dict[fx.Node, Tensor]:
        runner = SitesOff(self._captured.module, self._sites, record=True)
        runner.run(*inputs)
        return runner.seen


def _narrowed(changed: Tensor, shape: Sequence[int]) -> Tensor | None:
    """What changes in a tensor of ``shape`` that was spread over a larger one; None if that cannot have been so."""
    if len(shape) != changed.ndim or any(
        size not in (1, whole) for size, whole in zip(shape, changed.shape, strict=True)
    ):
        return None
    spread = [dim for dim, size in enumerate(shape) if size != changed.shape[dim]]
    bits = [(changed & bit).amax(spread, keepdim=True) if spread else changed & bit for bit in (FIRST, LAST)]
    return bits[0] | bits[1]


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
