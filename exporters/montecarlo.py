"""The Monte Carlo rewrite: one graph that draws T times, with everything before the first site run once.

``MonteCarloModule`` runs a captured graph node by node (``exporters.tiling``) and summarises the draws. Capturing this
module again gives the graph to export.

The rewrite assumes that rows do not mix after the first site. That is not taken on trust: ``exporters.parity`` compares
every export with the user's own module run draw by draw, and refuses where they differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, fx, nn

from deploykit.errors import ExportError
from deploykit.manifest import Statistic
from exporters.drawplan import MonteCarloPlan
from exporters.layout import BatchAxis, symbolic_shape
from exporters.mask_ops import row_keys
from exporters.statistics import summarize
from exporters.tiling import TiledRun

__all__ = ["MonteCarloModule", "Report", "output_nodes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One output: its name, the module's output that it was made from, and what was made of it."""

    name: str
    source: str
    statistic: Statistic
    value: Tensor


def output_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that the graph gives back, in order."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    found: list[fx.Node] = []
    fx.map_arg(output.args[0], found.append)
    return found


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
        class_outputs: Sequence[str],
        keep_draws: bool,
    ) -> None:
        super().__init__()
        self.body = plan.captured.module
        self.plan = plan
        self.names = tuple(names)
        self.shared = mode == "shared"
        self.summary = summary
        self.class_outputs = frozenset(class_outputs)
        self.keep_draws = keep_draws

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(report.value for report in self.reports(*tensors))

    def reports(self, *tensors: Tensor) -> list["Report"]:
        """The outputs with what they are."""
        *inputs, sample_ids, draw_ids, seed = tensors
        # Said plainly, because the capture cannot always conclude it from products of sizes.
        torch._check(inputs[0].shape[0] == sample_ids.shape[0])  # type: ignore[no-untyped-call]
        keys = row_keys(seed, sample_ids, draw_ids, shared=self.shared)
        draw_keys = row_keys(seed, torch.zeros_like(draw_ids[:1]), draw_ids, shared=True)
        run = TiledRun(
            self.plan, self.body, inputs,
            batch=sample_ids.shape[0], draws=draw_ids.shape[0], keys=keys, draw_keys=draw_keys,
        )  # fmt: skip
        nodes = zip(self.names, output_nodes(self.plan.captured.graph), strict=True)
        return [report for name, node in nodes for report in self._report(name, node, run)]

    def _report(self, name: str, node: fx.Node, run: TiledRun) -> list["Report"]:
        if node not in self.plan.reached:
            return [Report(name=name, source=name, statistic="value", value=run.once[node])]
        if self.plan.axes[node] != BatchAxis(dimension=0):
            raise ExportError(
                f"output {name!r}: has shape {list(map(str, symbolic_shape(node)))}; "
                "its first dimension must be the batch"
            )
        value = run.on_draws(node)
        # A copy has plain strides; of others the capture may not know that they fit every batch size.
        value = value.clone(memory_format=torch.contiguous_format)
        draws = value.reshape(run.draws, run.batch, *value.shape[1:])
        if self.summary == "first_draw":
            return [Report(name=name, source=name, statistic="value", value=draws[0])]
        if not value.is_floating_point():
            raise ExportError(
                f"output {name!r}: is {str(value.dtype).removeprefix('torch.')} and depends on a dropout; the mean "
                "of such values over draws means nothing. Return the scores that it was made from instead"
            )
        found = summarize(draws, classification=name in self.class_outputs, keep_draws=self.keep_draws)
        return [
            Report(name=f"{name}.{statistic}", source=name, statistic=cast(Statistic, statistic), value=value)
            for statistic, value in found.items()
        ]
