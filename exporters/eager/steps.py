"""A step method, such as ``predict_step``, called as Lightning's Trainer calls it: after the hooks before it."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.errors import ExportError, UsageError
from exporters.checkpoint.attached import attached
from exporters.checkpoint.target import lightning_hook
from exporters.eager.belongings import kept
from exporters.eager.dropouts import without_dropout
from exporters.eager.modes import identical

__all__ = ["STEP_METHODS", "Step", "beside_forward", "check_numbers"]

STAGES = {"predict_step": "predict", "test_step": "test", "validation_step": "validation"}

STEP_METHODS = tuple(STAGES)
"""LightningModule methods that take ``(batch, batch_idx)``."""

OTHER_NUMBERS = (1, 1000)
"""Batches that the result of a step is compared with, beside that of batch 0."""


class Step:
    """A step of a module, called as by a Trainer with one dataloader, at its first batch; ``as_batch`` says another.

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
        self._number = 0
        self._loader: int | None = None
        if lightning_hook(module, f"on_{self._stage}_model_eval") is not None:
            raise ExportError(
                f"{type(module).__name__}.on_{self._stage}_model_eval: sets the modes in which {method} runs, which an "
                f"export does itself; let the dropouts draw with --mc-draws, or set the modes in {method}"
            )

    def __call__(self, batch: Any) -> Any:
        numbers = (self._number,) if self._loader is None else (self._number, self._loader)
        with attached(self._module, self._stage):
            if not any(numbers):
                for place in ("start", "epoch_start"):
                    self._hook(f"on_{self._stage}_{place}")
            batch = self._transferred(batch)
            self._hook(f"on_{self._stage}_batch_start", batch, *numbers)
            return self._call(*(batch, *numbers)[self._given])

    @contextlib.contextmanager
    def as_batch(self, number: int, loader: int | None = None) -> Iterator[None]:
        """Let calls meanwhile be those of the batch of this number, ``batch_idx``.

        ``loader`` is ``dataloader_idx`` of a Trainer with several dataloaders; with one, it gives none. The hooks that
        a Trainer calls once are called before the first batch of all.
        """
        before = self._number, self._loader
        self._number, self._loader = number, loader
        try:
            yield
        finally:
            self._number, self._loader = before

    def takes_loader(self) -> bool:
        """Whether a Trainer with several dataloaders takes it; it asks for a parameter of that name."""
        start = lightning_hook(self._module, f"on_{self._stage}_batch_start")
        return all(map(_takes_loader, filter(None, (self._call, start))))

    def left_out(self) -> tuple[str, ...]:
        """What to know of hooks that come after the step and have its results."""
        ends = [f"on_{self._stage}_batch_end", *(["on_predict_epoch_end"] if self._stage == "predict" else [])]
        return tuple(
            f"{type(self._module).__name__}.{name}: is no part of the file; a Trainer calls it after the step, and "
            "what it changes, in the results or for later batches, is not in the file either"
            for name in ends
            if lightning_hook(self._module, name) is not None
        )

    def _hook(self, name: str, *arguments: Any) -> Any:
        hook = lightning_hook(self._module, name)
        return None if hook is None else hook(*arguments)

    def _transferred(self, batch: Any) -> Any:
        for name, device in _TRANSFERS.items():
            if lightning_hook(self._module, name) is not None:
                batch = self._hook(name, batch, *device, self._loader or 0)
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


def check_numbers(
    step: Step, call: Callable[[Sequence[Tensor]], Sequence[Tensor]], rows: Sequence[Tensor], others: Sequence[Tensor]
) -> tuple[str, ...]:
    """Compare what a module gives for the same rows as other batches, and as those of another dataloader.

    ``call`` runs ``step`` with inputs such as ``rows`` and ``others``, which come as the batch before. Call it where
    the module's state is kept, in evaluation mode.

    Returns:
        What the user should know.

    Raises:
        ExportError: the result depends on ``batch_idx`` or on the batches before, of which a file knows nothing.
    """

    def result(inputs: Sequence[Tensor], number: int, loader: int | None = None) -> Sequence[Tensor] | None:
        with step.as_batch(number, loader):
            return _result(lambda: call([each.clone() for each in inputs]))

    with kept([step]):
        first = result(rows, 0)
    result(others, 0)
    if not all(_same(first, result(rows, number)) for number in OTHER_NUMBERS):
        raise ExportError(
            f"{step.subject}: gives other values with another batch_idx, or after another batch, but how rows come in "
            "batches differs from run to run, so a file gets no such number and keeps nothing of a batch; compute "
            "every row from itself: deploykit writes the sample_id of every row"
        )
    if not step.takes_loader() or _same(first, result(rows, 0, 1)):
        return ()
    return (
        f"{step.subject}: gives other values with another dataloader_idx; the file computes those of a Trainer with "
        "one dataloader, wherever a row comes from",
    )


def _result(call: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor] | None:
    """The result with the same noise; None where the user's code does not take such a batch."""
    torch.manual_seed(0)
    try:
        return without_dropout(call)  # type: ignore[no-any-return]
    # The user's code may raise anything, and has run well as the first batch, so that it tells a difference.
    except Exception:  # noqa: BLE001
        return None


def _same(first: Sequence[Tensor] | None, second: Sequence[Tensor] | None) -> bool:
    if first is None or second is None or len(first) != len(second):
        return first is second
    return all(map(identical, first, second))


def _places(subject: str, function: Callable[..., Any]) -> slice:
    """Which of ``(batch, batch_idx, dataloader_idx)`` the step is given."""
    signature = inspect.signature(function)
    fitting = []
    for count in (1, 2):
        with contextlib.suppress(TypeError):
            signature.bind(*[None] * count)
            fitting.append(count)
    if not fitting:
        raise UsageError(
            f"{subject}: takes {signature}; expected (batch, batch_idx) or (batch), with a default for all else; give "
            "dataloader_idx the default 0, as Lightning demands where there is one dataloader"
        )
    return slice(None) if 2 in fitting else slice(1)


def _takes_loader(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(
        each.kind is each.VAR_POSITIONAL or (each.name == "dataloader_idx" and each.kind is not each.KEYWORD_ONLY)
        for each in parameters
    )
