"""The outputs of an exported file: made from the module's own, named and described."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from deploykit.errors import ExportError
from deploykit.manifest import OutputSpec, Statistic
from exporters.capture.graph import Captured
from exporters.rewrite.layout import named_size, symbolic_shape, symbols_of
from exporters.rewrite.statistics import Variances, summarize
from exporters.tasks import OutputTask, leaving_out

__all__ = ["Report", "Value", "make_reports", "output_specs", "refuse_clash", "refuse_unfit"]

_WITHOUT_CLASSES = ("entropy", "mutual_information")


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One output of the module: (draws, batch, ...) if ``drawn``, else (batch, ...)."""

    tensor: Tensor
    drawn: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One output of the file: its name, the module's output that it was made from, and what was made of it."""

    name: str
    source: str
    statistic: Statistic
    value: Tensor


def make_reports(values: Mapping[str, Value], tasks: Mapping[str, OutputTask], *, keep_draws: bool) -> list[Report]:
    """What the file gives for the module's outputs, in their order; one that no draw reaches comes as it is.

    Raises:
        ExportError: a variance that does not fit its mean.
    """
    found: list[Report] = []
    for name, task in tasks.items():
        tensor = values[name].tensor
        if not values[name].drawn:
            found.append(Report(name=name, source=name, statistic="value", value=tensor))
            continue
        summary = summarize(
            tensor, classification=task.classes, scores=task.scores, class_axis=task.class_axis,
            event=task.event, variances=_variances(name, task, values), keep_draws=keep_draws,
        )  # fmt: skip
        found += [
            Report(name=f"{name}.{statistic}", source=name, statistic=cast(Statistic, statistic), value=value)
            for statistic, value in summary.items()
        ]
    return found


def refuse_unfit(drawn: Mapping[str, fx.Node], captured: Captured, batch_name: str, *, averaged: bool) -> None:
    """Refuse, all at once, outputs that depend on a dropout and that no file with draws can hold.

    Args:
        drawn: the outputs by name.
        captured: the graph that they are of.
        batch_name: the name of the batch dimension.
        averaged: whether means over draws are made of them.

    Raises:
        ExportError: names them.
    """
    symbol = captured.symbols[batch_name]
    found = {name: _problem(node, captured, symbol, averaged) for name, node in drawn.items()}
    problems = {name: problem for name, problem in found.items() if problem}
    if problems:
        each = "; ".join(f"output {name!r}: {problem}" for name, problem in problems.items())
        raise ExportError(f"{each}; leave out what nobody needs with {leaving_out(problems)}")


def _problem(node: fx.Node, captured: Captured, symbol: Any, averaged: bool) -> str | None:
    value, sizes = node.meta["val"], symbolic_shape(node)
    if not sizes:
        return "is a single number and depends on a dropout, so the rows of a batch would influence each other"
    if sizes[0] != symbol and symbol in symbols_of(node):
        return f"has shape {list(_named(value, captured))}, and its first dimension must be the batch"
    if averaged and not value.is_floating_point():
        return (
            f"is {_type(value)} and depends on a dropout; the mean of such values over draws means nothing, so return "
            "the scores that it was made from"
        )
    return None


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _variances(name: str, task: OutputTask, values: Mapping[str, Value]) -> Variances | None:
    if task.variance is None:
        return None
    head = values[task.variance]
    tensor = head.tensor if head.drawn else head.tensor.unsqueeze(0)
    if not tensor.is_floating_point():
        raise ExportError(
            f"output {task.variance!r}: is {_type(tensor)} and is the variance of {name!r}, which is no "
            f"whole number; cast it, or leave --variance {name}={task.variance} out"
        )
    mean, variance = values[name].tensor.shape[1:], tensor.shape[1:]
    # Broadcasting in torch's sense would also make a table out of (batch) and (batch, 1), which mixes the rows.
    if len(mean) != len(variance) or any(a not in (b, 1) for a, b in zip(variance, mean, strict=True)):
        raise ExportError(
            f"output {task.variance!r}: has shape {_shape(variance)} and is the variance of {name!r} with shape "
            f"{_shape(mean)}; needed is the same shape, or 1 where all values have the same variance"
        )
    return tensor, task.logarithm


def _shape(sizes: torch.Size) -> str:
    return f"[{', '.join(['batch', *map(str, sizes[1:])])}]" if sizes else "[]"


def output_specs(
    reports: Sequence[Report], tasks: Mapping[str, OutputTask], captured: Captured, batch_name: str
) -> tuple[OutputSpec, ...]:
    """Describe the reports by the outputs of the graph, which know the names of the dimensions.

    Raises:
        ExportError: names the outputs whose first dimension is not the batch.
    """
    values = [node.meta["val"] for node in captured.outputs]
    shapes = [_named(value, captured) for value in values]
    pairs = zip(reports, shapes, strict=True)
    odd = {report.source: shape for report, shape in pairs if shape[:1] != (batch_name,)}
    if odd:
        each = "; ".join(f"output {name!r}: has shape {list(shape)}" for name, shape in odd.items())
        raise ExportError(
            f"{each}; the first dimension of every output must be {batch_name!r}, so that each row has its own result. "
            f"Return a tensor per row, or leave out what nobody needs with {leaving_out(odd)}"
        )
    each_of = zip(reports, values, shapes, strict=True)
    return tuple(_spec(report, value, shape, tasks[report.source]) for report, value, shape in each_of)


def _named(value: Tensor, captured: Captured) -> tuple[int | str, ...]:
    """The shape with the names of dynamic dimensions."""
    sizes: list[int | torch.SymInt] = list(value.shape)
    return tuple(size if isinstance(size, int) else named_size(size.node.expr, captured.symbols) for size in sizes)


def _spec(report: Report, value: Tensor, shape: tuple[int | str, ...], task: OutputTask) -> OutputSpec:
    return OutputSpec(
        name=report.name, dtype=_type(value), shape=shape, source=report.source,
        statistic=report.statistic, task=task.kind, class_axis=_class_axis(report.statistic, task),
    )  # fmt: skip


def _class_axis(statistic: str, task: OutputTask) -> int | None:
    """The draws of an output have one dimension more, between the batch and the rest."""
    if task.class_axis is None or statistic in _WITHOUT_CLASSES:
        return None
    return task.class_axis + 1 if statistic == "draws" else task.class_axis


def refuse_clash(outputs: Sequence[OutputSpec], inputs: Collection[str]) -> None:
    """Refuse an output that is called as an input is, those of the draws included: an ONNX file knows a name once.

    Raises:
        ExportError: names it.
    """
    clash = next((output for output in outputs if output.name in inputs), None)
    if clash is not None:
        raise ExportError(
            f"output {clash.name!r}: has the name of an input, and a file can have each name once; return it under "
            f"another name, or leave it out with --task {clash.source}=none"
        )
