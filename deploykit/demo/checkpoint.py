"""The demo's network as a Lightning checkpoint, the file that most users have."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.storage.files import appears_whole

if TYPE_CHECKING:
    from deploykit.demo.training import Trained

__all__ = ["save_checkpoint"]

LIGHTNING_VERSION = "2.6.6"
"""The version whose layout this is; Lightning converts older layouts when it loads them."""

ATTRIBUTE = "network"
"""The name under which the LightningModule would hold the network: it prefixes all names of weights."""


def save_checkpoint(path: Path, trained: "Trained") -> None:
    """Write the file that Lightning's Trainer writes after the last epoch, without needing Lightning."""
    import torch

    with appears_whole(path) as temporary:
        torch.save(_lightning_content(trained), temporary)


def _lightning_content(trained: "Trained") -> dict[str, Any]:
    """Everything that a checkpoint of Lightning's Trainer holds."""
    weights = trained.network.state_dict()
    return {
        "epoch": trained.recipe.epochs,
        "global_step": trained.recipe.epochs * trained.batches_per_epoch,
        "pytorch-lightning_version": LIGHTNING_VERSION,
        "state_dict": type(weights)((f"{ATTRIBUTE}.{name}", tensor) for name, tensor in weights.items()),
        "loops": _loops(trained.recipe.epochs, trained.batches_per_epoch),
        "callbacks": {},
        "optimizer_states": [trained.optimizer.state_dict()],
        "lr_schedulers": [trained.scheduler.state_dict()],
        "hparams_name": "kwargs",
        "hyper_parameters": dict(trained.recipe.hyperparameters),
    }


_ATTEMPTS = ("ready", "completed")
_STARTED = ("ready", "started", "completed")
_PROCESSED = ("ready", "started", "processed", "completed")


def _counts(names: tuple[str, ...], total: int, current: int) -> dict[str, Any]:
    return {"total": dict.fromkeys(names, total), "current": dict.fromkeys(names, current)}


def _batches(total: int, current: int, *, last: bool) -> dict[str, Any]:
    return {**_counts(_PROCESSED, total, current), "is_last_batch": last}


def _loops(epochs: int, batches: int) -> dict[str, Any]:
    """The progress of the Trainer's loops: fitted to the end, the others never started."""
    steps = epochs * batches
    optimizer = {"step": _counts(_ATTEMPTS, steps, batches), "zero_grad": _counts(_STARTED, steps, batches)}
    idle = {"state_dict": {}, "batch_progress": _batches(0, 0, last=False)}
    return {
        "fit_loop": {
            "state_dict": {},
            "epoch_loop.state_dict": {"_batches_that_stepped": steps},
            "epoch_loop.batch_progress": _batches(steps, batches, last=True),
            "epoch_loop.scheduler_progress": _counts(_ATTEMPTS, epochs, 1),
            "epoch_loop.automatic_optimization.state_dict": {},
            "epoch_loop.automatic_optimization.optim_progress": {"optimizer": optimizer},
            "epoch_loop.manual_optimization.state_dict": {},
            "epoch_loop.manual_optimization.optim_step_progress": _counts(_ATTEMPTS, 0, 0),
            "epoch_loop.val_loop.state_dict": {},
            "epoch_loop.val_loop.batch_progress": _batches(0, 0, last=False),
            "epoch_progress": _counts(_PROCESSED, epochs, epochs),
        },
        "validate_loop": idle,
        "test_loop": idle,
        "predict_loop": {"state_dict": {}, "batch_progress": _counts(_PROCESSED, 0, 0)},
    }
