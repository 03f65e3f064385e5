"""``self.trainer`` of a LightningModule where there is no Trainer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["attached"]


class _Stage:
    """What a step may ask of ``self.trainer``: which stage this is; all else is a Trainer's, if there is one.

    Without one it is false, as the None is that it stands in for, logging does nothing, and there is one process. What
    decides about values, such as the datamodule, is not made up.
    """

    training = sanity_checking = False
    barebones = True
    """``self.log`` returns at once."""

    def __init__(self, stage: str, trainer: Any) -> None:
        self.validating, self.testing, self.predicting = stage == "validation", stage == "test", stage == "predict"
        self.evaluating = not self.predicting
        self._trainer = trainer
        if trainer is None:
            # What is so in one process, whoever runs the file; self.print asks for some of it.
            self.is_global_zero, self.global_rank, self.local_rank, self.node_rank = True, 0, 0, 0
            self.world_size = self.num_nodes = self.num_devices = 1
            self.progress_bar_callback = self.logger = None
            self.loggers: list[Any] = []

    def __bool__(self) -> bool:
        return bool(self._trainer)

    def __getattr__(self, name: str) -> Any:
        # A copy asks before it has anything.
        trainer = self.__dict__.get("_trainer")
        if trainer is None:
            raise AttributeError(
                f"self.trainer.{name}: the module is not attached to a Trainer, of which an export only knows the "
                "stage (training, validating, testing, predicting) and that there is one process"
            )
        return getattr(trainer, name)


@contextmanager
def attached(module: nn.Module, stage: str) -> Iterator[None]:
    """Let ``self.trainer`` tell the stage meanwhile, in the module and its parts."""
    parts = [part for part in module.modules() if "_trainer" in vars(part)]
    before = [part._trainer for part in parts]
    try:
        for part, trainer in zip(parts, before, strict=True):
            part._trainer = _Stage(stage, trainer)  # type: ignore[assignment]
        yield
    finally:
        for part, trainer in zip(parts, before, strict=True):
            part._trainer = trainer
