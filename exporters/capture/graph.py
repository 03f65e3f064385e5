"""Capture a module as one flat graph of ATen operations with named dynamic dimensions."""

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator
from torch.fx.experimental import _config as symbolic_config

from deploykit.bounds import Bounds, tighter
from deploykit.compare import default_tolerance
from deploykit.errors import DeploykitError, ExportError
from deploykit.tensors import TensorSpec
from exporters.capture.explain import NO_FUNCTORCH, at_fault, explain, place, with_functions
from exporters.capture.finiteness import FiniteAnswers, UnmendedError
from exporters.capture.fixed import Step, noting_fixed_sizes
from exporters.capture.likeness import same_programs
from exporters.capture.overwritten import renew_overwritten
from exporters.capture.packing import padded_sequences
from exporters.capture.plainly import plainly
from exporters.capture.positions import most_by_positions
from exporters.capture.reach import drop_unseen_writes
from exporters.capture.recurrence import dynamic_steps
from exporters.capture.relations import Relation, relations_of, symbols_of
from exporters.capture.suggested import suggested
from exporters.noise.sites import masks_asked, module_of, operation_of

__all__ = ["Captured", "capture", "logging_only", "own_name", "quiet"]

_CHECKS = {
    "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "_guards_fn", "sym_constrain_range",
    "sym_constrain_range_for_size",
}  # fmt: skip
"""Names of nodes that only check what was true of the example; they compute nothing."""

_MEND = (
    ", which an exported graph cannot follow; mend always, without asking, as torch.nan_to_num(x) and "
    "torch.where(torch.isnan(x), 0.0, x) do it. Code for float16 alone does nothing in a module exported in float32"
)
_LEFT_OUT = "an error for numbers that are not finite, which no file can raise, is left out of the file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """An exported program and its graph with parameters as attributes.

    ``symbols`` maps the name of each dynamic dimension to its symbol in the nodes' shapes; ``bounds`` holds ``min`` and
    ``max`` of those that the module's code bounds, or a table of positions. ``ones`` holds a size of those of
    which another one is 1 up to it, in the example too, and for which torch was not asked to look at that;
    ``relations`` is what was taken for granted of several of them. ``asked`` is
    what ``masks_asked`` says of the module's own calls: the graph is without those that no output needs. ``notes`` is
    what people should know of the capture.
    """

    program: torch.export.ExportedProgram
    module: fx.GraphModule
    symbols: dict[str, Any]
    bounds: Bounds
    asked: tuple[tuple[fx.Node, str, float | None], ...]
    ones: Mapping[str, int] = field(default_factory=dict)
    relations: tuple[Relation, ...] = ()
    notes: Sequence[str] = ()

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    @property
    def outputs(self) -> Sequence[fx.Node]:
        """The nodes that the graph gives back, in order."""
        return cast(Sequence[fx.Node], self.graph.output_node().args[0])

    @property
    def all_nodes(self) -> Iterator[fx.Node]:
        """Those of the graph and of the graphs inside it, as of a loop or of a condition."""
        parts = (part for part in self.module.modules() if isinstance(part, fx.GraphModule))
        return (node for part in parts for node in part.graph.nodes)

    @property
    def tolerance(self) -> float:
        """The error that rounding may cause, which the shortest floating-point type among all values decides."""
        values = (node.meta.get("val") for node in self.all_nodes)
        dtypes = {str(value.dtype) for value in values if isinstance(value, Tensor)}
        return max(default_tolerance(dtype.removeprefix("torch.")) for dtype in dtypes)

    def after(self, first: "Captured") -> "Captured":
        """The same, with what an earlier capture took for granted, in which the module's own code ran."""
        return replace(self, ones={**first.ones, **self.ones}, relations=first.relations)


_Exported = tuple[torch.export.ExportedProgram, Bounds, Mapping[str, int]]
"""A program with its ``bounds`` and ``ones``, as of a ``Captured``."""


def capture(
    module: nn.Module, example: Sequence[Tensor], specs: Sequence[TensorSpec], bounds: Bounds | None = None
) -> Captured:
    """Capture ``module(*example)``; ``bounds`` are those known from another capture of the same code.

    Every named dimension of ``specs`` stays dynamic; a module that fixes one is refused, and one that bounds it is not.

    Raises:
        ExportError: the module cannot be captured; the message says what stopped it.
    """
    (program, bounds, ones), notes = _traced(module, example, specs, bounds or {})
    with quiet():
        graph_module: fx.GraphModule = program.module()
    asked = tuple(masks_asked(graph_module.graph))
    _drop_checks(graph_module.graph)
    renew_overwritten(graph_module.graph)
    drop_unseen_writes(graph_module.graph)
    graph_module.recompile()
    _refuse_contexts(graph_module.graph)
    symbols = symbols_of(graph_module.graph, specs)
    bounds = tighter(bounds, most_by_positions(graph_module.graph, symbols))
    return Captured(
        program=program, module=graph_module, symbols=symbols, bounds=bounds, asked=asked, ones=ones,
        relations=relations_of(graph_module.graph, symbols), notes=notes,
    )  # fmt: skip


def _traced(
    module: nn.Module, example: Sequence[Tensor], specs: Sequence[TensorSpec], bounds: Bounds
) -> tuple[_Exported, list[str]]:
    """Export with all that the code does to mend numbers that are not finite, and without the checks that refuse them.

    The notes tell of the checks.
    """
    refusals: dict[int, str] = {}
    while True:
        fixed: list[Step] = []
        answers = FiniteAnswers(finite=False, refusals=refusals)
        try:
            with noting_fixed_sizes(fixed):
                found = _within_bounds(module, example, specs, bounds, answers)
            if len(answers.questions) > len(refusals):
                _check_mends(module, example, specs, found[1], answers, refusals)
            return found, list(dict.fromkeys(refusals.values()))
        except UnmendedError as error:
            raise ExportError(f"{place(error.steps, module)}{error}{_MEND}") from error
        except DeploykitError:
            # Raised by our own code around the module, with a text that says what to do.
            raise
        except Exception as error:
            refusal = answers.refusal(error)
            if refusal is None:
                text = explain(error, module, specs, example, fixed)
                raise ExportError(text, part=at_fault(error, module)) from error
            refusals[refusal] = f"{place(answers.questions[refusal], module)}{_LEFT_OUT}"


def _check_mends(
    module: nn.Module, example: Sequence[Tensor], specs: Sequence[TensorSpec], bounds: Bounds, asked: FiniteAnswers,
    refusals: Collection[int],
) -> None:  # fmt: skip
    """Refuse code that does more than mend where numbers are not finite.

    Raises:
        UnmendedError: without the mends it is not what the module does with finite numbers.
    """
    whole = FiniteAnswers(finite=True)
    wanted, *_ = _within_bounds(module, example, specs, bounds, whole)
    left = FiniteAnswers(finite=False, refusals=refusals, leave=True)
    found, *_ = _within_bounds(module, example, specs, bounds, left)
    numbers = {len(answers.questions) for answers in (asked, whole, left)}
    if len(numbers) > 1 or not same_programs(wanted, found):
        raise UnmendedError(next(steps for number, steps in enumerate(asked.questions) if number not in refusals))


def _within_bounds(
    module: nn.Module, example: Sequence[Tensor], specs: Sequence[TensorSpec], known: Bounds, answers: FiniteAnswers
) -> _Exported:
    """Export, and again where the code holds for a range of sizes only, as a table of positions does.

    torch also refuses sizes for which a dimension computed from them would be 1, or would no longer be it. It is then
    asked not to look at that case, as it never does for the sizes of the inputs, if it suggests nothing or a largest
    size: one that does without the smallest is taken at its word.
    """
    # Loaded late: with it torch loads its compiler, and whatever that finds installed.
    from torch._dynamo.exc import UserError

    bounds = known
    while True:
        try:
            return _export(module, example, specs, bounds, True, answers), bounds, {}
        except UserError as error:
            found = suggested(str(error), bounds)
        most = {name: ends["max"] for name, ends in found.items() if ends.get("max") != bounds.get(name, {}).get("max")}
        if found == bounds or most:
            try:
                return _export(module, example, specs, bounds, False, answers), bounds, most
            except Exception as error:
                # Code for a size of 1 may fail in any way where that is not looked at; then there is the largest.
                if not most:
                    found = suggested(str(error), bounds) if isinstance(error, UserError) else bounds
                if found == bounds:
                    raise
        bounds = found


def _export(
    module: nn.Module, example: Sequence[Tensor], specs: Sequence[TensorSpec], bounds: Bounds, look_at_ones: bool,
    answers: FiniteAnswers,
) -> torch.export.ExportedProgram:  # fmt: skip
    names = dict.fromkeys(size for spec in specs for size in spec.shape if isinstance(size, str))
    # Two is what torch assumes in any case, without saying so.
    least = {} if look_at_ones else {"min": 2}
    dimensions = {name: torch.export.Dim(name, **{**least, **bounds.get(name, {})}) for name in names}
    shapes = tuple(
        {axis: dimensions[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in specs
    )
    ones = cast(Any, symbolic_config).patch(backed_size_oblivious=not look_at_ones)
    whole = _one_size_for_each_name(module, specs)
    with quiet(), _silent(), dynamic_steps(), padded_sequences(), plainly(), whole, ones, answers, torch.no_grad():
        return torch.export.export(module, tuple(example), dynamic_shapes={"tensors": shapes}, strict=False)


@contextmanager
def _one_size_for_each_name(module: nn.Module, specs: Sequence[TensorSpec]) -> Iterator[None]:
    """Let dimensions of one name be known to be the same: torch finds it out only where the code asks for it.

    Without it, half of ``torch.cat([x, y])`` is not known to be a batch.
    """

    def compare(_module: nn.Module, tensors: Sequence[Tensor]) -> None:
        first: dict[str, Any] = {}
        for spec, tensor in zip(specs, tensors, strict=True):
            for name, size in zip(spec.shape, tensor.shape, strict=True):
                if isinstance(name, str):
                    torch._check(first.setdefault(name, size) == size)  # type: ignore[no-untyped-call]

    handle = module.register_forward_pre_hook(compare)
    try:
        yield
    finally:
        handle.remove()


def own_name(target: str) -> str:
    """The name of a weight in the user's module, without the names of the modules wrapped around it."""
    return target.removeprefix("body.").removeprefix("module.")


def _drop_checks(graph: fx.Graph) -> None:
    for node in reversed(graph.nodes):
        if not node.users and operation_of(node) in _CHECKS:
            graph.erase_node(node)


def _refuse_contexts(graph: fx.Graph) -> None:
    """What is left of ``torch.vmap`` in a graph belongs to a call that is over, and no format knows autocast."""
    functions = next((str(node.target) for node in graph.nodes if isinstance(node.target, HigherOrderOperator)), None)
    for node in graph.nodes:
        if "functorch" in str(getattr(node.target, "__module__", "")):
            # Flexible attention has some of its own.
            raise ExportError(f"{module_of(node)}: {with_functions(functions) if functions else NO_FUNCTORCH}")
        if str(node.target) == "wrap_with_autocast":
            raise ExportError(
                f"{module_of(node)}: computes in a block of torch.autocast, which no file can hold; switch it off for "
                "the export (enabled=False), or cast by hand what is to be in another type"
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's warnings about its own deprecations from the user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _silent() -> Iterator[None]:
    """A failed capture makes torch print its graph and log its own traceback; the error says what matters."""
    loggers = "torch.fx.experimental.symbolic_shapes", "torch._subclasses"
    with logging_only(logging.CRITICAL, *loggers), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextmanager
def logging_only(level: int, *names: str) -> Iterator[None]:
    """Let the loggers of these names tell nothing below ``level``."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(level)
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
