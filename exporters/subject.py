"""Turn a module into the one graph that all formats are written from, together with its oracle."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from deploykit import masks
from deploykit.errors import ExportError
from deploykit.manifest import MonteCarlo, OutputSpec, Statistic
from deploykit.tensors import TensorSpec
from exporters.capture import Captured, capture
from exporters.drawplan import MonteCarloPlan, SitesOff, plan_monte_carlo, refuse_state, refuse_unsupported
from exporters.eager import without_dropout
from exporters.entry import Entry
from exporters.inputs import ModelInputs
from exporters.modes import borrowed, python_random_state, set_modes, tracks_statistics
from exporters.montecarlo import MonteCarloModule
from exporters.reach import kept_state
from exporters.reference import Reference
from exporters.sites import Draw, find_draws
from exporters.torchscript import Controls

__all__ = ["DrawOptions", "Subject", "prepare"]

EXAMPLE_BATCH = 5
"""Larger than one, because torch.export takes a size of one for a constant; odd, so that no fold of heads hides it."""

Training = Callable[[str, nn.Module], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawOptions:
    """What the user asked for; ``draws`` of None exports the module as it is in evaluation mode."""

    draws: int | None = None
    mode: Literal["independent", "shared"] = "independent"
    seed: int = 0
    task: Literal["classification", "regression", "raw"] = "raw"
    class_outputs: tuple[str, ...] = ()
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
        seen = found.run(found.evaluation) if options.draws is None else found.with_dropout()
        refuse_state(seen.captured)
        if not seen.draws:
            return _deterministic(entry, seen.captured, found.names(), seen.training, inputs.batch_name)
        plan = plan_monte_carlo(seen.captured, seen.draws, inputs.batch_name, example)
        return _monte_carlo(entry, plan, found.names(), inputs, example, seen.training, options)


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
        draws = find_draws(captured.graph)
        refuse_unsupported(draws)
        return _Seen(captured=captured, draws=draws, training=training)

    def with_dropout(self) -> _Seen:
        """Capture in modes in which exactly the dropouts differ from evaluation.

        First everything is put in training mode, except what tracks statistics of the batch. Where that changes more
        than the dropouts, only the modules that own a dropout are.
        """
        seen = self.run(_all_but_statistics)
        if not seen.draws:
            raise ExportError(
                f"{type(self.entry.module).__name__}: no dropout found in {self.entry.method} with p above 0, so there "
                "is nothing to draw; export without --mc-draws"
            )
        if not kept_state(seen.captured.graph) and self._equals_evaluation(seen):
            return seen
        owners = {draw.module for draw in seen.draws}

        def owners_only(name: str, _module: nn.Module) -> bool:
            return (name.removeprefix("module").removeprefix(".") or "(root)") in owners

        again = self.run(owners_only)
        refuse_state(again.captured)
        if again.calls() == seen.calls() and self._equals_evaluation(again):
            return again
        raise ExportError(
            f"{type(self.entry.module).__name__}: training mode changes more than the dropouts "
            f"({', '.join(sorted(owners))}): even with every mask switched off, its outputs are not those of "
            "evaluation mode. Make the other difference depend on something else than self.training"
        )

    def names(self) -> tuple[str, ...]:
        """The names of the outputs, from one eager call."""
        return tuple(self._eager(self.evaluation))

    def _eager(self, training: Training) -> dict[str, Tensor]:
        set_modes(self.entry, training)
        found: dict[str, Tensor] = without_dropout(lambda: self.entry.named(*self._copies()))
        return found

    def _equals_evaluation(self, seen: _Seen) -> bool:
        wanted = self._eager(self.evaluation)
        got = SitesOff(seen.captured.module, [draw.node for draw in seen.draws]).run(*self._copies())
        if len(got) != len(wanted):
            return False
        return all(_close(a, b) for a, b in zip(got, wanted.values(), strict=True))

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


def _all_but_statistics(_name: str, module: nn.Module) -> bool:
    return not tracks_statistics(module)


def _close(got: Tensor, wanted: Tensor) -> bool:
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    if not got.is_floating_point():
        return torch.equal(got, wanted)
    scale = float(wanted.abs().max()) if wanted.numel() else 0.0
    tolerance = 1e-2 if wanted.dtype in (torch.float16, torch.bfloat16) else 1e-4
    return torch.allclose(got, wanted, rtol=0, atol=tolerance * scale, equal_nan=True)


def _deterministic(
    entry: Entry, captured: Captured, names: Sequence[str], training: Training, batch_name: str
) -> Subject:
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    values = [node.meta["val"] for node in output.args[0]]
    outputs = tuple(
        _output_spec(name, name, "value", value, captured, batch_name)
        for name, value in zip(names, values, strict=True)
    )
    reference = Reference(entry=entry, training=training)
    return Subject(captured=captured, outputs=outputs, monte_carlo=None, controls=None, reference=reference)


def _monte_carlo(
    entry: Entry,
    plan: MonteCarloPlan,
    names: Sequence[str],
    inputs: ModelInputs,
    example: Sequence[Tensor],
    training: Training,
    options: DrawOptions,
) -> Subject:
    summary: Literal["statistics", "first_draw"] = "first_draw" if options.draws is None else "statistics"
    drawn = _drawn_outputs(plan, names)
    module = MonteCarloModule(
        plan, names, mode=options.mode, summary=summary,
        class_outputs=_class_outputs(drawn, options), keep_draws=options.keep_draws,
    )  # fmt: skip
    controls = [torch.arange(example[0].shape[0]), torch.arange(3), torch.tensor(options.seed)]
    reports = module.reports(*[tensor.clone() for tensor in example], *controls)
    specs = [*inputs.specs, *_control_specs(inputs.batch_name)]
    captured = capture(module, [*example, *controls], specs, plan.captured.bounds)
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    outputs = tuple(
        _output_spec(report.name, report.source, report.statistic, node.meta["val"], captured, inputs.batch_name)
        for report, node in zip(reports, output.args[0], strict=True)
    )
    monte_carlo = MonteCarlo(
        draws=options.draws or 1, mask_mode=options.mode, mask_algorithm=masks.ALGORITHM, seed=options.seed,
        sites=tuple(placed.site for placed in plan.sites), nodes_once=plan.nodes_once, nodes_total=plan.nodes_total,
    )  # fmt: skip
    reference = Reference(
        entry=entry, training=training, sites=plan.sites, mode=options.mode, summary=summary,
        class_outputs=frozenset(module.class_outputs), keep_draws=options.keep_draws, drawn=frozenset(drawn),
    )  # fmt: skip
    defaults = Controls(seed=options.seed, draws=options.draws or 1)
    return Subject(captured=captured, outputs=outputs, monte_carlo=monte_carlo, controls=defaults, reference=reference)


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


def _class_outputs(drawn: Sequence[str], options: DrawOptions) -> list[str]:
    """Which outputs hold class scores: those named by the user, else the only one, else the one called logits."""
    if options.task != "classification":
        return []
    unknown = sorted(set(options.class_outputs) - set(drawn))
    if unknown:
        raise ExportError(
            f"class output {', '.join(unknown)}: not among the outputs that depend on a dropout: {', '.join(drawn)}"
        )
    if options.class_outputs:
        return list(options.class_outputs)
    if len(drawn) == 1:
        return list(drawn)
    if "logits" in drawn:
        return ["logits"]
    raise ExportError(
        f"task classification: several outputs ({', '.join(drawn)}); say which holds class scores with --class-output"
    )


def _output_spec(
    name: str, source: str, statistic: Statistic, value: Tensor, captured: Captured, batch_name: str
) -> OutputSpec:
    names = {symbol: dimension for dimension, symbol in captured.symbols.items()}
    sizes: list[int | torch.SymInt] = list(value.shape)
    shape = tuple(size if isinstance(size, int) else str(size.node.expr.subs(names)) for size in sizes)
    if not shape or shape[0] != batch_name:
        raise ExportError(
            f"output {source!r}: has shape {list(shape)}; the first dimension of every output must be {batch_name!r}, "
            "so that each row has its own result. Return a tensor per row, or leave this output out"
        )
    return OutputSpec(
        name=name, dtype=str(value.dtype).removeprefix("torch."), shape=shape, source=source, statistic=statistic
    )
