"""Whether what is said to be class scores, or probabilities, is that.

Probabilities that pass for scores would go through a second softmax, and be flat; scores have no entropy.
"""

import numpy as np
from numpy.typing import NDArray

from deploykit.bounds import Bounds
from deploykit.errors import ExportError
from exporters.checks.reference import Reference
from exporters.checks.rows import blaming_the_module
from exporters.inputs import ModelInputs
from exporters.tasks import OutputTask

__all__ = ["check_scores"]

Array = NDArray[np.float64]

_ROWS = 16


def check_scores(reference: Reference, inputs: ModelInputs, tolerance: float, bounds: Bounds) -> tuple[str, ...]:
    """Look at one draw of the outputs that have classes, of no more rows than the module's ``bounds`` allow.

    Returns:
        A note for each output all of whose scores might be probabilities, though scores might have such values, too.

    Raises:
        ExportError: scores that are probabilities already, or probabilities that are none. What is NaN tells nothing.
    """
    asked = {name: task for name, task in reference.tasks.items() if task.classes}
    if not asked:
        return ()
    rows = min(_ROWS, bounds.get(inputs.batch_name, {}).get("max", _ROWS))
    sizes = {inputs.batch_name: rows, **inputs.default_sizes()}
    with blaming_the_module(sizes):
        found = reference.draw(inputs.random(sizes, seed=6), sample_ids=np.arange(rows, dtype=np.int64), seed=1, draw=0)
    notes = []
    for name, task in asked.items():
        values = found[name].astype(np.float64)
        if not task.scores:
            _require_probabilities(name, values, task, tolerance)
        elif values.size and np.all((values >= 0) & (values <= 1)):
            notes.append(_note_of_scores(name, values, task, tolerance))
    return tuple(notes)


def _note_of_scores(name: str, values: Array, task: OutputTask, tolerance: float) -> str:
    """A note on scores that all lie between 0 and 1, or the refusal of what adds up to 1 besides."""
    advice = (
        f"say --task {name}=probabilities{_axis(task)}, or return what comes before the softmax or the sigmoid "
        "(perhaps --method forward does)"
    )
    sums = _sums(values, task)
    if sums is not None and np.allclose(sums, 1, rtol=0, atol=tolerance):
        raise ExportError(
            f"output {name!r}: is probabilities already, which add up to 1 along axis {task.class_axis}; --task "
            f"{name}=classification takes class scores (logits) and makes the softmax of them: {advice}"
        )
    return (
        f"output {name}: all of its values lie between 0 and 1 in the checks, and --task {name}=classification "
        f"takes scores (logits). If they are probabilities, {advice}"
    )


def _require_probabilities(name: str, values: Array, task: OutputTask, tolerance: float) -> None:
    beyond = values[(values < -tolerance) | (values > 1 + tolerance)]
    if beyond.size:
        raise ExportError(
            f"output {name!r}: has values such as {beyond[0]:.6g} in the checks, and --task {name}=probabilities takes "
            f"what lies between 0 and 1; for scores (logits) say --task {name}=classification{_axis(task)}"
        )
    sums = _sums(values, task)
    off = np.empty(0) if sums is None else sums[np.abs(sums - 1) > tolerance]
    if off.size:
        raise ExportError(
            f"output {name!r}: adds up to {off[0]:.6g} along axis {task.class_axis} in a row of the checks, and --task "
            f"{name}=probabilities takes what adds up to 1 along the axis of the classes; name that with "
            f"{name}=probabilities@AXIS, for scores (logits) say --task {name}=classification{_axis(task)}, and give "
            f"events that do not exclude each other an axis of size 1: unsqueeze(-1) and {name}=probabilities@-1"
        )


def _sums(values: Array, task: OutputTask) -> Array | None:
    """What the values add up to along the axis of the classes; None where each belongs to one event."""
    return None if task.class_axis is None or task.event else np.asarray(values.sum(axis=task.class_axis))


def _axis(task: OutputTask) -> str:
    return "" if task.class_axis in (None, 1) else f"@{task.class_axis}"
