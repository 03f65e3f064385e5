"""Whether what is said to be class scores are scores: probabilities would go through a second softmax, and be flat."""

import numpy as np
from numpy.typing import NDArray

from deploykit.errors import ExportError
from exporters.checks.reference import Reference
from exporters.checks.rows import blaming_the_module
from exporters.inputs import ModelInputs
from exporters.tasks import OutputTask

__all__ = ["check_scores"]

_ROWS = 16

_ADVICE = (
    "return what comes before the softmax or the sigmoid (perhaps --method forward does), or leave the task out for "
    "the mean and the deviation of the probabilities"
)


def check_scores(reference: Reference, inputs: ModelInputs, tolerance: float) -> tuple[str, ...]:
    """Look at one draw of the outputs of which probabilities are to be made.

    Returns:
        A note for each output all of whose values might be probabilities, though scores might have them, too.

    Raises:
        ExportError: the values of each row add up to 1 over the classes, and none is below 0.
    """
    asked = {name: task for name, task in reference.tasks.items() if task.kind == "classification"}
    if not asked:
        return ()
    sizes = {inputs.batch_name: _ROWS, **inputs.default_sizes()}
    with blaming_the_module(sizes):
        found = reference.draw(
            inputs.random(sizes, seed=6), sample_ids=np.arange(_ROWS, dtype=np.int64), seed=1, draw=0
        )
    notes = []
    for name, task in asked.items():
        values = found[name].astype(np.float64)
        if not values.size or not np.all((values >= 0) & (values <= 1)):
            continue
        if _adds_up(values, task, tolerance):
            raise ExportError(
                f"output {name!r}: is probabilities already, which add up to 1 along axis {task.class_axis}; --task "
                f"{name}=classification takes class scores (logits) and makes the softmax of them: {_ADVICE}"
            )
        notes.append(
            f"output {name}: all of its values lie between 0 and 1 in the checks, and --task {name}=classification "
            f"takes scores (logits). If they are probabilities, {_ADVICE}"
        )
    return tuple(notes)


def _adds_up(values: NDArray[np.float64], task: OutputTask, tolerance: float) -> bool:
    if task.class_axis is None or task.event:
        return False
    return bool(np.allclose(values.sum(axis=task.class_axis), 1, rtol=0, atol=tolerance))
