"""Choose how the draws are run: all together along the batch where that is right, one after the other where it is not.

Nobody can see from a graph alone that the rows of several draws can stand in for a larger batch. So the batched form
is run, and must give what the module gives draw by draw; if it does not, the sequential form is taken.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray
from torch import Tensor

from deploykit.bounds import Bounds
from deploykit.compare import worst_of
from deploykit.errors import ExportError
from deploykit.tensors import TensorSpec
from deploykit.wording import first_line
from exporters.capture.graph import Captured, capture
from exporters.checks.reference import to_numpy
from exporters.rewrite.montecarlo import MonteCarloModule
from exporters.rewrite.outputs import Report
from exporters.rewrite.perdraw import NotBatchedError

__all__ = ["DrawnGraph", "Form", "capture_draws"]

Form = Literal["batched", "sequential"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnGraph:
    """The graph that draws, its outputs at the example, its form, and why it is not the batched one."""

    captured: Captured
    reports: Sequence[Report]
    form: Form
    reason: str | None


def capture_draws(
    make: Callable[[Form], MonteCarloModule],
    example: Sequence[Tensor],
    specs: Sequence[TensorSpec],
    bounds: Bounds,
    *,
    wanted: Callable[[], Arrays],
    tolerance: float,
) -> DrawnGraph:
    """Capture ``make(form)``; ``wanted`` gives what the module itself gives for ``example``.

    Raises:
        ExportError: neither form can be captured.
    """
    module = make("batched")
    reason = module.plan.obstacle
    if reason is None:
        try:
            reports = _run(module, example)
            _compare(reports, wanted(), tolerance)
            captured = _capture_batched(module, example, specs, bounds)
            return DrawnGraph(captured=captured, reports=reports, form="batched", reason=None)
        except NotBatchedError as error:
            reason = str(error)
    module = make("sequential")
    reports = module.reports(*[tensor.clone() for tensor in example])
    captured = capture(module, example, specs, bounds)
    return DrawnGraph(captured=captured, reports=reports, form="sequential", reason=reason)


def _run(module: MonteCarloModule, example: Sequence[Tensor]) -> list[Report]:
    try:
        return module.reports(*[tensor.clone() for tensor in example])
    except (RuntimeError, IndexError, ValueError) as error:
        raise NotBatchedError(f"computing the rows of several draws together fails: {first_line(error)}") from error


def _compare(reports: Sequence[Report], wanted: Arrays, tolerance: float) -> None:
    got = {report.name: to_numpy(report.value) for report in reports}
    for difference in worst_of({report.name: report.statistic for report in reports}, got, wanted):
        if not difference.error <= tolerance:
            raise NotBatchedError(f"output {difference.output} is another one when the draws run together")


def _capture_batched(
    module: MonteCarloModule, example: Sequence[Tensor], specs: Sequence[TensorSpec], bounds: Bounds
) -> Captured:
    try:
        return capture(module, example, specs, bounds)
    except ExportError as error:
        raise NotBatchedError(f"the rows of several draws together cannot be captured: {first_line(error)}") from error
