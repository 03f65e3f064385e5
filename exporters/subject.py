"""Turn a module into the one graph that all formats are written from, together with its oracle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from deploykit import masks
from deploykit.errors import ExportError, UsageError
from deploykit.manifest import MonteCarlo, OutputSpec
from deploykit.tensors import TensorSpec
from exporters.capture.graph import Captured
from exporters.capture.lookups import with_allowed
from exporters.checks.reference import Reference
from exporters.checks.rows import check_rows_apart, notes_of_company
from exporters.checks.scores import check_scores
from exporters.checks.trainmodes import Training, evaluation
from exporters.checks.watch import refuse_own_seed
from exporters.eager.entry import Entry
from exporters.eager.modes import borrowed, set_modes
from exporters.eager.steps import beside_forward, check_numbers
from exporters.forms import Form, capture_draws
from exporters.inputs import CONTROLS, Controls, ModelInputs, control_specs
from exporters.modal import ModalCapture
from exporters.rewrite.drawplan import MonteCarloPlan, plan_monte_carlo, refuse_state
from exporters.rewrite.footprint import row_bytes
from exporters.rewrite.montecarlo import MonteCarloModule
from exporters.rewrite.outputs import Report, output_specs, refuse_clash, refuse_unfit
from exporters.rewrite.work import once_over_draw
from exporters.tasks import TaskRequest

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
    """A captured module, ready to be written: the graph, its outputs, its Monte Carlo section, and the oracle.

    ``inputs`` are the module's, with the values that they may hold as far as the graph tells.
    ``notes`` is what people should know of the modes that it was captured in.
    """

    captured: Captured
    outputs: tuple[OutputSpec, ...]
    monte_carlo: MonteCarlo | None
    controls: Controls | None
    reference: Reference
    inputs: tuple[TensorSpec, ...] = ()
    notes: tuple[str, ...] = ()


def prepare(entry: Entry, inputs: ModelInputs, options: DrawOptions) -> Subject:
    """Capture ``entry``, rewrite its dropouts, and check that the capture means what the module means.

    The module is left as it was.

    Raises:
        ExportError: the module cannot be exported faithfully; the message names the module and the reason.
        UsageError: an option of draws, where there are none.
    """
    arrays = inputs.random({inputs.batch_name: EXAMPLE_BATCH, **inputs.default_sizes()}, seed=1)
    example = [torch.from_numpy(arrays[name]) for name in inputs.names]
    with borrowed(entry):
        subject = _prepared(ModalCapture(entry, inputs.specs, example), inputs, example, options)
        notes = _of_the_trainer(entry, inputs, example)
    refuse_clash(subject.outputs, [*inputs.names, *(CONTROLS if subject.controls else ())])
    return replace(subject, notes=(*subject.notes, *notes, *entry.notes()))


def _of_the_trainer(entry: Entry, inputs: ModelInputs, example: Sequence[Tensor]) -> tuple[str, ...]:
    """What a Trainer does with the module beside calling the method, and the file does not."""
    if entry.step is None:
        return beside_forward(entry.module) if entry.method == "forward" else ()
    arrays = inputs.random({inputs.batch_name: EXAMPLE_BATCH, **inputs.default_sizes()}, seed=2)
    others = [torch.from_numpy(arrays[name]) for name in inputs.names]
    set_modes(entry, evaluation)
    notes = check_numbers(entry.step, lambda rows: entry(*rows), example, others)
    return (*entry.step.left_out(), *notes)


def _prepared(found: ModalCapture, inputs: ModelInputs, example: Sequence[Tensor], options: DrawOptions) -> Subject:
    seen = found.run(evaluation) if options.draws is None else found.with_dropout(options.modules)
    refuse_state(seen.captured)
    shapes, entry = found.shapes(), found.entry
    specs = with_allowed(inputs.specs, seen.captured.graph)
    if not seen.draws:
        _refuse_options_of_draws(options)
        subject = _deterministic(entry, seen.captured, shapes, seen.training, inputs.batch_name, options.tasks)
        company = notes_of_company(subject.reference, inputs, subject.captured.tolerance)
        return replace(subject, notes=(*seen.notes, *company), inputs=specs)
    refuse_own_seed(found.random_calls(seen.training))
    plan = plan_monte_carlo(seen.captured, seen.draws, inputs.batch_name, example)
    subject = _monte_carlo(entry, plan, shapes, inputs, example, seen.training, options)
    notes: tuple[str, ...] = ()
    if options.draws is not None:
        notes = check_scores(subject.reference, inputs, subject.captured.tolerance, subject.captured.bounds)
        notes = (*notes, *_of_its_loop(plan))
    return replace(subject, notes=(*seen.notes, *notes), inputs=specs)


def _of_its_loop(plan: MonteCarloPlan) -> tuple[str, ...]:
    """What statistics over draws mean where each draw is several passes."""
    if not plan.passes:
        return ()
    passes = max(map(len, plan.passes.values()))
    return (
        f"the module's own loop makes {passes} passes in each draw: where it averages them, std is that of such an "
        "average, and not of a pass; for the spread of passes export the module without its loop",
    )


def _refuse_options_of_draws(options: DrawOptions) -> None:
    """Who says how draws are made wants some: a file without any would pass for one that has them."""
    asked = {
        "--keep-draws": options.keep_draws,
        f"--mask-mode {options.mode}": options.mode != "independent",
        f"--seed {options.seed}": options.seed != 0,
    }
    if given := [text for text, is_given in asked.items() if is_given]:
        raise UsageError(
            f"{', '.join(given)}: the module draws nothing in evaluation mode, so the file would be deterministic; add "
            "--mc-draws, which says how often its dropouts draw, or leave this out"
        )


def _deterministic(
    entry: Entry,
    captured: Captured,
    shapes: Mapping[str, tuple[int, ...]],
    training: Training,
    batch_name: str,
    request: TaskRequest,
) -> Subject:
    tasks = request.resolve(shapes, drawn=None)
    reports = [
        Report(name=name, source=name, statistic="value", value=node.meta["val"])
        for name, node in zip(shapes, captured.outputs, strict=True)
    ]
    outputs = output_specs(reports, tasks, captured, batch_name)
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
        entry=entry, training=training, asked=tuple(plan.asked), mode=options.mode, summary=summary,
        tasks=tasks, keep_draws=options.keep_draws, drawn=frozenset(drawn),
    )  # fmt: skip
    nodes = {name: node for name, node in zip(shapes, plan.captured.outputs, strict=True) if name in drawn}
    refuse_unfit(nodes, plan.captured, inputs.batch_name, averaged=summary == "statistics")
    check_rows_apart(reference, plan, inputs, example, tuple(shapes))
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
        [*inputs.specs, *control_specs(inputs.batch_name)], plan.captured.bounds,
        wanted=wanted, tolerance=10 * plan.captured.tolerance,
    )  # fmt: skip
    captured = drawn_graph.captured.after(plan.captured)
    monte_carlo = MonteCarlo(
        draws=options.draws or 1, mask_mode=options.mode, mask_algorithm=masks.ALGORITHM, seed=options.seed,
        sites=tuple(placed.site for placed in plan.sites), nodes_once=plan.nodes_once, nodes_total=plan.nodes_total,
        row_bytes=row_bytes(captured, inputs.batch_name, inputs.default_sizes()),
        once_over_draw=once_over_draw(make(drawn_graph.form), example, ids, torch.tensor(options.seed)),
        form=drawn_graph.form, form_reason=drawn_graph.reason,
    )  # fmt: skip
    return Subject(
        captured=captured, outputs=output_specs(drawn_graph.reports, tasks, captured, inputs.batch_name),
        monte_carlo=monte_carlo, controls=Controls(seed=options.seed, draws=options.draws or 1), reference=reference,
    )  # fmt: skip


def _drawn_outputs(plan: MonteCarloPlan, names: Sequence[str]) -> list[str]:
    drawn = [name for name, node in zip(names, plan.captured.outputs, strict=True) if node in plan.reached]
    if not drawn:
        raise ExportError("no output depends on a dropout, so there is nothing to draw; export without --mc-draws")
    return drawn
