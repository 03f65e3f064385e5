"""The outputs of an exported file: made from the module's own, named and described."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from deploykit.errors import ExportError
from deploykit.manifest import OutputSpec, Statistic
from exporters.capture.graph import Captured
from exporters.rewrite.layout import named_size
from exporters.rewrite.statistics import Variances, summarize
from exporters.tasks import OutputTask

__all__ = ["Report", "Value", "make_reports", "output_spec", "refuse_clash"]

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
        ExportError: an output whose draws have no mean, or a variance that does not fit its mean.
    """
    found: list[Report] = []
    for name, task in tasks.items():
        tensor = values[name].tensor
        if not values[name].drawn:
            found.append(Report(name=name, source=name, statistic="value", value=tensor))
            continue
        _check_mean_exists(name, tensor)
        summary = summarize(
            tensor, classification=task.classes, scores=task.scores, class_axis=task.class_axis,
            event=task.event, variances=_variances(name, task, values), keep_draws=keep_draws,
        )  # fmt: skip
        found += [
            Report(name=f"{name}.{statistic}", source=name, statistic=cast(Statistic, statistic), value=value)
            for statistic, value in summary.items()
        ]
    return found


def _check_mean_exists(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ExportError(
            f"output {name!r}: is {str(tensor.dtype).removeprefix('torch.')} and depends on a dropout; the mean of "
            "such values over draws means nothing. Return the scores that it was made from, or leave it out with "
            f"--task {name}=none"
        )


def _variances(name: str, task: OutputTask, values: Mapping[str, Value]) -> Variances | None:
    if task.variance is None:
        return None
    head = values[task.variance]
    tensor = head.tensor if head.drawn else head.tensor.unsqueeze(0)
    _check_mean_exists(task.variance, tensor)
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


def output_spec(report: Report, value: Tensor, task: OutputTask, captured: Captured, batch_name: str) -> OutputSpec:
    """Describe a report; ``value`` is the captured tensor, which knows the names of the dimensions.

    Raises:
        ExportError: the first dimension is not the batch.
    """
    sizes: list[int | torch.SymInt] = list(value.shape)
    shape = tuple(size if isinstance(size, int) else named_size(size.node.expr, captured.symbols) for size in sizes)
    if not shape or shape[0] != batch_name:
        raise ExportError(
            f"output {report.source!r}: has shape {list(shape)}; the first dimension of every output must be "
            f"{batch_name!r}, so that each row has its own result. Return a tensor per row, or leave this output out "
            f"with --task {report.source}=none"
        )
    return OutputSpec(
        name=report.name, dtype=str(value.dtype).removeprefix("torch."), shape=shape, source=report.source,
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
