"""The Monte Carlo rewrite: one graph that draws T times, with everything before the first site run once.

``MonteCarloModule`` runs a captured graph node by node, with all draws together (``exporters.rewrite.tiling``) or one
after the other (``exporters.rewrite.sequential``), and summarises the draws. Capturing this module again gives the
graph to export.

The rewrite assumes that rows do not mix. That is not taken on trust: ``exporters.checks.rows`` asks the user's own
module, and ``exporters.parity`` compares every export with it draw by draw, and refuses where they differ.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from deploykit.errors import ExportError
from exporters.noise.mask_ops import row_keys
from exporters.rewrite.drawplan import MonteCarloPlan
from exporters.rewrite.layout import BatchAxis, symbolic_shape
from exporters.rewrite.outputs import Report, Value, make_reports
from exporters.rewrite.sequential import SequentialRun
from exporters.rewrite.tiling import TiledRun
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
        form: Literal["batched", "sequential"],
        mode: Literal["independent", "shared"],
        summary: Literal["statistics", "first_draw"],
        tasks: Mapping[str, OutputTask],
        keep_draws: bool,
    ) -> None:
        super().__init__()
        self.body = plan.captured.module
        self.plan = plan
        self.names = tuple(names)
        self.form = form
        self.shared = mode == "shared"
        self.summary = summary
        self.tasks = dict(tasks)
        self.keep_draws = keep_draws

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(report.value for report in self.reports(*tensors))

    def reports(self, *tensors: Tensor) -> list[Report]:
        """The outputs with what they are."""
        *inputs, sample_ids, draw_ids, seed = tensors
        # Said plainly, because the capture cannot always conclude it from products of sizes.
        torch._check(inputs[0].shape[0] == sample_ids.shape[0])  # type: ignore[no-untyped-call]
        keys = row_keys(seed, sample_ids, draw_ids, shared=self.shared)
        # Hardly a model has masks that belong to no row, and a capture takes its time for every operation.
        draw_keys = functools.cache(lambda: row_keys(seed, torch.zeros_like(draw_ids[:1]), draw_ids, shared=True))
        nodes = dict(zip(self.names, self.plan.captured.outputs, strict=True))
        for name, node in nodes.items():
            self._check_batch(name, node)
        given: Any = {"batch": sample_ids.shape[0], "draws": draw_ids.shape[0], "keys": keys, "draw_keys": draw_keys}
        run = (
            TiledRun(self.plan, inputs, **given)
            if self.form == "batched"
            else SequentialRun(self.plan, inputs, **given, wanted=list(nodes.values()))
        )
        values = {name: self._value(node, run) for name, node in nodes.items()}
        return make_reports(values, self.tasks, keep_draws=self.keep_draws)

    def _check_batch(self, name: str, node: fx.Node) -> None:
        if node in self.plan.reached and self.plan.axes[node] != BatchAxis(dimension=0):
            raise ExportError(
                f"output {name!r}: has shape {list(map(str, symbolic_shape(node)))}; "
                f"its first dimension must be the batch; leave it out with --task {name}=none"
            )

    def _value(self, node: fx.Node, run: TiledRun | SequentialRun) -> Value:
        if node not in self.plan.reached:
            return Value(tensor=run.once[node], drawn=False)
        draws = run.drawn(node)
        return Value(tensor=draws[0], drawn=False) if self.summary == "first_draw" else Value(tensor=draws, drawn=True)
