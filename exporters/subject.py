"""Turn a module into the one graph that all formats are written from, together with its oracle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploykit import masks
from deploykit.compare import default_tolerance
from deploykit.errors import ExportError
from deploykit.manifest import MonteCarlo, OutputSpec
from deploykit.tensors import TensorSpec
from exporters.capture import Captured, capture
from exporters.drawplan import MonteCarloPlan, SitesOff, plan_monte_carlo, refuse_state, refuse_unsupported
from exporters.eager import without_dropout
from exporters.entry import Entry
from exporters.footprint import row_bytes
from exporters.forms import Form, capture_draws
from exporters.inputs import ModelInputs
from exporters.modes import borrowed, python_random_state, set_modes
from exporters.montecarlo import MonteCarloModule
from exporters.outputs import Report, output_spec
from exporters.reach import kept_state
from exporters.reference import Reference
from exporters.rows import check_rows_apart
from exporters.simplify import simplify
from exporters.sites import Draw, find_draws
from exporters.tasks import OutputTask, TaskRequest
from exporters.torchscript import Controls
from exporters.trainmodes import Training, close, drawing_in_training, makers_of_noise, matching, only, rows_apart
from exporters.work import once_over_draw

__all__ = ["DrawOptions", "Subject", "prepare"]

EXAMPLE_BATCH = 5
"""Larger than one, because torch.export takes a size of one for a constant; odd, so that no fold of heads hides it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawOptions:
    """What the user asked for; ``draws`` of None exports the module as it is in evaluation mode."""

    draws: int | None = None
    modules: tuple[str, ...] = ()
    mode: Literal["independent", "shared"] = "independent"
    seed: int = 0
    tasks: TaskRequest = field(default_factory=TaskRequest)
    keep_draws: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A captured module, ready to be written: the graph, its outputs, its Monte Carlo section, and the oracle."""

    captured: Captured
    outputs: tuple[OutputSpec, ...]
    monte_carlo: MonteCarlo | None
    controls: Controls | None
    reference: Reference


def prepare(entry: Entry, inputs: ModelInputs, options: DrawOptions) -> Subject:
    """Capture ``entry``, rewrite its dropouts, and check that the capture means what the module means.

    The module is left as it was.

    Raises:
        ExportError: the module cannot be exported faithfully; the message names the module and the reason.
    """
    arrays = inputs.random({inputs.batch_name: EXAMPLE_BATCH, **inputs.default_sizes()}, seed=1)
    example = [torch.from_numpy(arrays[name]) for name in inputs.names]
    with borrowed(entry):
        found = _Capture(entry, inputs.specs, example)
        seen = found.run(found.evaluation) if options.draws is None else found.with_dropout(options.modules)
        refuse_state(seen.captured)
        if not seen.draws:
            return _deterministic(entry, seen.captured, found.shapes(), seen.training, inputs.batch_name, options.tasks)
        plan = plan_monte_carlo(seen.captured, seen.draws, inputs.batch_name, example)
        return _monte_carlo(entry, plan, found.shapes(), inputs, example, seen.training, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A capture with the modes it was made in and the random operations in it."""

    captured: Captured
    draws: Sequence[Draw]
    training: Training

    def calls(self) -> list[tuple[str, str]]:
        return sorted((draw.module, draw.operation) for draw in self.draws)


class _Capture:
    """Capture one entry in different modes. ``borrowed`` must be active."""

    def __init__(self, entry: Entry, specs: Sequence[TensorSpec], example: Sequence[Tensor]) -> None:
        self.entry, self.specs, self.example = entry, specs, example

    @staticmethod
    def evaluation(_name: str, _module: nn.Module) -> bool:
        return False

    def run(self, training: Training) -> _Seen:
        set_modes(self.entry, training)
        before = python_random_state()
        try:
            captured = capture(self.entry, self._copies(), self.specs)
        finally:
            # Also where the capture failed, which may be for this reason.
            if python_random_state() != before:
                raise ExportError(
                    f"{self._python_random_module(training)}: draws from Python's or numpy's own random generator; "
                    "an exported graph would repeat that one value for ever. Draw with torch, or switch this off"
                )
        simplify(captured.module)
        draws = find_draws(captured.graph)
        refuse_unsupported(draws)
        return _Seen(captured=captured, draws=draws, training=training)

    def with_dropout(self, patterns: Sequence[str]) -> _Seen:
        """Capture in modes in which exactly the dropouts of the chosen modules differ from evaluation.

        First everything is put in training mode, except what tracks statistics of the batch. Where that changes more
        than the dropouts, only the modules that own one are. What a module makes of noise of its own, such as a mask
        from ``rand``, may have no form without the noise; then such modules count as they are in training mode, if
        rows stay apart in it.
        """
        seen = self.run(matching(patterns))
        if not seen.draws:
            raise ExportError(self._nothing_drawn(patterns))
        if not kept_state(seen.captured.graph) and self._off_equals(seen, self.evaluation):
            return seen
        owners = drawing_in_training(seen.draws, self.run(self.evaluation).draws)
        again = self.run(only(owners))
        refuse_state(again.captured)
        if again.calls() == seen.calls():
            if self._off_equals(again, self.evaluation):
                return again
            makers = makers_of_noise(again.draws, owners)
            apart = bool(makers) and rows_apart(again.captured, self.example)
            if apart and self._off_equals(again, only(makers)):
                return again
        raise ExportError(
            f"{type(self.entry.module).__name__}: training mode changes more than the dropouts "
            f"({', '.join(sorted(owners))}): even with every mask switched off, its outputs are not those of "
            "evaluation mode. Make the other difference depend on something else than self.training"
        )

    def _nothing_drawn(self, patterns: Sequence[str]) -> str:
        subject = f"{type(self.entry.module).__name__}: no dropout found in {self.entry.method} with p above 0"
        drawing = list(dict.fromkeys(draw.module for draw in self.run(matching(())).draws)) if patterns else []
        if drawing:
            return (
                f"{subject} in modules like {', '.join(patterns)}; --mc-modules can choose among {', '.join(drawing)}"
            )
        return f"{subject}, so there is nothing to draw; export without --mc-draws"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each output by its name, from one eager call."""
        return {name: tuple(value.shape) for name, value in self._eager(self.evaluation).items()}

    def _eager(self, training: Training) -> dict[str, Tensor]:
        set_modes(self.entry, training)
        found: dict[str, Tensor] = without_dropout(lambda: self.entry.named(*self._copies()))
        return found

    def _off_equals(self, seen: _Seen, training: Training) -> bool:
        """Whether the capture with its sites off gives the eager module's outputs in modes that are right for it."""
        wanted = self._eager(training)
        if tuple(wanted) != tuple(self.shapes()):
            return False
        got = SitesOff(seen.captured.module, [draw.node for draw in seen.draws]).run(*self._copies())
        if len(got) != len(wanted):
            return False
        return all(close(a, b) for a, b in zip(got, wanted.values(), strict=True))

    def _copies(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self.example]

    def _python_random_module(self, training: Training) -> str:
        """The innermost module that changed Python's random state in an eager call."""
        guilty: list[str] = []
        for name, module in self.entry.module.named_modules():
            state: list[object] = []
            module.register_forward_pre_hook(lambda *_a, state=state: state.append(python_random_state()))

            def after(*_a: object, name: str = name, state: list[object] = state) -> None:
                if state.pop() != python_random_state():
                    guilty.append(name)

            module.register_forward_hook(after)
        self._eager(training)
        # Hooks run from the inside out; borrowed() removes them.
        return (guilty[0] if guilty else "") or "(root)"


def _deterministic(
    entry: Entry,
    captured: Captured,
    shapes: Mapping[str, tuple[int, ...]],
    training: Training,
    batch_name: str,
    request: TaskRequest,
) -> Subject:
    tasks = request.resolve(shapes, drawn=None)
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    reports = [
        Report(name=name, source=name, statistic="value", value=node.meta["val"])
        for name, node in zip(shapes, output.args[0], strict=True)
    ]
    outputs = _outputs(reports, tasks, captured, batch_name)
    reference = Reference(entry=entry, training=training)
    return Subject(captured=captured, outputs=outputs, monte_carlo=None, controls=None, reference=reference)


def _monte_carlo(
    entry: Entry,
    plan: MonteCarloPlan,
    shapes: Mapping[str, tuple[int, ...]],
    inputs: ModelInputs,
    example: Sequence[Tensor],
    training: Training,
    options: DrawOptions,
) -> Subject:
    summary: Literal["statistics", "first_draw"] = "first_draw" if options.draws is None else "statistics"
    drawn = _drawn_outputs(plan, tuple(shapes))
    # One draw of a loop that the user wrote is the module's own output, of which no statistics are made.
    tasks = options.tasks.resolve(shapes, None if summary == "first_draw" else drawn)
    reference = Reference(
        entry=entry, training=training, sites=plan.sites, mode=options.mode, summary=summary,
        tasks=tasks, keep_draws=options.keep_draws, drawn=frozenset(drawn),
    )  # fmt: skip
    check_rows_apart(reference, plan, inputs, example)
    ids, draws = torch.arange(example[0].shape[0]), torch.arange(3)

    def make(form: Form) -> MonteCarloModule:
        return MonteCarloModule(
            plan, tuple(shapes), form=form, mode=options.mode, summary=summary, tasks=tasks,
            keep_draws=options.keep_draws,
        )  # fmt: skip

    def wanted() -> Mapping[str, NDArray[Any]]:
        arrays = {name: tensor.numpy() for name, tensor in zip(inputs.names, example, strict=True)}
        return reference.outputs(arrays, sample_ids=ids.numpy(), seed=options.seed, draws=range(len(draws)))

    drawn_graph = capture_draws(
        make, [*example, ids, draws, torch.tensor(options.seed)],
        [*inputs.specs, *_control_specs(inputs.batch_name)], plan.captured.bounds,
        wanted=wanted, tolerance=10 * default_tolerance(inputs.specs[0].dtype),
    )  # fmt: skip
    captured = drawn_graph.captured
    monte_carlo = MonteCarlo(
        draws=options.draws or 1, mask_mode=options.mode, mask_algorithm=masks.ALGORITHM, seed=options.seed,
        sites=tuple(placed.site for placed in plan.sites), nodes_once=plan.nodes_once, nodes_total=plan.nodes_total,
        row_bytes=row_bytes(captured, inputs.batch_name, inputs.default_sizes()),
        once_over_draw=once_over_draw(make(drawn_graph.form), example, ids, torch.tensor(options.seed)),
        form=drawn_graph.form, form_reason=drawn_graph.reason,
    )  # fmt: skip
    return Subject(
        captured=captured, outputs=_outputs(drawn_graph.reports, tasks, captured, inputs.batch_name),
        monte_carlo=monte_carlo, controls=Controls(seed=options.seed, draws=options.draws or 1), reference=reference,
    )  # fmt: skip


def _outputs(
    reports: Sequence[Report], tasks: Mapping[str, OutputTask], captured: Captured, batch_name: str
) -> tuple[OutputSpec, ...]:
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    return tuple(
        output_spec(report, node.meta["val"], tasks[report.source], captured, batch_name)
        for report, node in zip(reports, output.args[0], strict=True)
    )


def _control_specs(batch_name: str) -> list[TensorSpec]:
    return [
        TensorSpec(name="sample_ids", dtype="int64", shape=(batch_name,)),
        TensorSpec(name="draw_ids", dtype="int64", shape=("draws",)),
        TensorSpec(name="seed", dtype="int64", shape=()),
    ]


def _drawn_outputs(plan: MonteCarloPlan, names: Sequence[str]) -> list[str]:
    (output,) = (node for node in plan.captured.graph.nodes if node.op == "output")
    drawn = [name for name, node in zip(names, output.args[0], strict=True) if node in plan.reached]
    if not drawn:
        raise ExportError("no output depends on a dropout, so there is nothing to draw; export without --mc-draws")
    return drawn
