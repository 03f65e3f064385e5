"""Whether ``predict_step`` draws where another method is exported, as one with a loop of passes around ``forward``."""

from collections.abc import Sequence

from torch import Tensor

from exporters.checkpoint.target import is_lightning, lightning_hook
from exporters.checks.trainmodes import Training
from exporters.checks.watch import random_calls
from exporters.eager.entry import Entry, arrangement_for
from exporters.eager.modes import borrowed, set_modes

__all__ = ["STEP", "step_draws"]

STEP = "predict_step"


def step_draws(entry: Entry, rows: Sequence[Tensor], training: Training) -> bool:
    """Whether ``predict_step`` of the module, called with the inputs of ``entry``, draws in these modes.

    Not if it is what ``entry`` calls, or calls ``forward`` alone, as Lightning's own, or does not take such inputs.
    """
    module = entry.module
    if entry.method == STEP or not callable(getattr(module, STEP, None)):
        return False
    if is_lightning(module) and lightning_hook(module, STEP) is None:
        return False
    try:
        step = Entry(module, STEP, entry.names, arrangement_for(module, STEP, entry.names), entry.left_out)
        with borrowed(step):
            set_modes(step, training)
            calls = random_calls(module, lambda: step.named(*[each.clone() for each in rows]))
    # The user's code may raise anything, and it is not what is exported.
    except Exception:  # noqa: BLE001
        return False
    return any(call.drew for call in calls)
