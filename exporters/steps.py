"""A step method, such as ``predict_step``, called as Lightning's Trainer calls it: after the hooks before it."""

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.errors import ExportError, UsageError
from exporters.attached import attached
from exporters.eager import without_dropout
from exporters.modes import set_modes
from exporters.target import lightning_hook

__all__ = ["STEP_METHODS", "Step", "beside_forward", "check_numbers"]

STAGES = {"predict_step": "predict", "test_step": "test", "validation_step": "validation"}

STEP_METHODS = tuple(STAGES)
"""LightningModule methods that take ``(batch, batch_idx)``."""

OTHER_NUMBERS = (1, 1000)
"""Batches that the result of a step is compared with, beside that of batch 0."""


class Step:
    """A step of a module; ``number`` is that of the batch, ``batch_idx``, and ``loader`` that of its dataloader.

    Raises:
        UsageError: the method takes something else than ``(batch, batch_idx)`` or ``(batch)``.
        ExportError: a hook of the module decides about modes, of which an export decides itself.
    """

    def __init__(self, module: nn.Module, method: str) -> None:
        self._stage, self._call = STAGES[method], getattr(module, method)
        # What torch.compile wraps around a module has its methods, but not its hooks.
        owner = getattr(self._call, "__self__", None)
        self._module = module = owner if isinstance(owner, nn.Module) else module
        self.subject = f"{method} of {type(module).__name__}"
        self._given = _places(self.subject, self._call)
        self.number = self.loader = 0
        if lightning_hook(module, f"on_{self._stage}_model_eval") is not None:
            raise ExportError(
                f"{type(module).__name__}.on_{self._stage}_model_eval: sets the modes in which {method} runs, which an "
                f"export does itself; let the dropouts draw with --mc-draws, or set the modes in {method}"
            )

    def __call__(self, batch: Any) -> Any:
        with attached(self._module, self._stage):
            for place in ("start", "epoch_start"):
                self._hook(f"on_{self._stage}_{place}")
            batch = self._transferred(batch)
            self._hook(f"on_{self._stage}_batch_start", batch, self.number)
            return self._call(*(batch, self.number, self.loader)[: self._given])

    def _hook(self, name: str, *arguments: Any) -> Any:
        hook = lightning_hook(self._module, name)
        return None if hook is None else hook(*arguments)

    def _transferred(self, batch: Any) -> Any:
        for name, device in _TRANSFERS.items():
            if lightning_hook(self._module, name) is not None:
                batch = self._hook(name, batch, *device, self.loader)
        return batch


_TRANSFERS: dict[str, tuple[torch.device, ...]] = {
    "on_before_batch_transfer": (),
    "transfer_batch_to_device": (torch.device("cpu"),),
    "on_after_batch_transfer": (),
}


def beside_forward(module: nn.Module) -> tuple[str, ...]:
    """What to know of hooks that change a LightningModule's batches, of which its ``forward`` knows nothing."""
    return tuple(
        f"{type(module).__name__}.{name}: is no part of forward; a Trainer calls it, and --method predict_step"
        for name in _TRANSFERS
        if lightning_hook(module, name) is not None
    )


def check_numbers(step: Step, call: Callable[[], Sequence[Tensor]], module: nn.Module) -> tuple[str, ...]:
    """Compare what a module gives for the same rows as other batches, and as those of another dataloader.

    ``call`` runs ``step``. Call it where the module's state is kept.

    Returns:
        What the user should know.

    Raises:
        ExportError: the result depends on ``batch_idx``, of which a file knows nothing.
    """
    set_modes(module, lambda _name, _module: False)
    first = _result(step, call, 0, 0)
    if not all(_same(first, _result(step, call, number, 0)) for number in OTHER_NUMBERS):
        raise ExportError(
            f"{step.subject}: gives other values with another batch_idx, but how rows come in batches differs from "
            "run to run, so a file gets no such number; leave it out: deploykit writes the sample_id of every row"
        )
    if _same(first, _result(step, call, 0, 1)):
        return ()
    return (
        f"{step.subject}: gives other values with another dataloader_idx; the file computes those of the first "
        "dataloader, wherever a row comes from",
    )


def _result(step: Step, call: Callable[[], Sequence[Tensor]], number: int, loader: int) -> Sequence[Tensor] | None:
    """The result as that of another batch; None where the user's code does not take such a number."""
    torch.manual_seed(0)
    step.number, step.loader = number, loader
    try:
        return without_dropout(call)  # type: ignore[no-any-return]
    # The user's code may raise anything, and has run well with the numbers 0, so that it tells a difference.
    except Exception:  # noqa: BLE001
        return None
    finally:
        step.number = step.loader = 0


def _same(first: Sequence[Tensor] | None, second: Sequence[Tensor] | None) -> bool:
    if first is None or second is None or len(first) != len(second):
        return first is second
    return all(
        a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
        for a, b in zip(first, second, strict=True)
    )


def _places(subject: str, function: Callable[..., Any]) -> int:
    """How many of ``(batch, batch_idx, dataloader_idx)`` the step takes."""
    signature = inspect.signature(function)
    fitting = []
    for count in (1, 2, 3):
        with contextlib.suppress(TypeError):
            signature.bind(*[None] * count)
            fitting.append(count)
    if not fitting or fitting[0] == 3:
        raise UsageError(
            f"{subject}: takes {signature}; expected (batch, batch_idx) or (batch), with a default for all else; give "
            "dataloader_idx the default 0, as Lightning demands where there is one dataloader"
        )
    return fitting[-1]
