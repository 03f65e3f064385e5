"""What a prediction writer sees of a Trainer and a LightningModule: what writers read, and an error for the rest."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from deploykit.standin import NotThereError, StandIn

__all__ = ["make_module", "make_trainer"]


def make_trainer(
    rank: int, ranks: int, writer: Any, *, loaders: Any, batches: Sequence[int], datamodule: Any = None
) -> StandIn:
    """A stand-in for the Trainer of one rank.

    Args:
        rank: global and local rank; all ranks are on one machine.
        ranks: the world size.
        writer: the callback.
        loaders: what ``predict_dataloaders`` is.
        batches: how many batches the rank has of each dataloader.
        datamodule: the LightningDataModule, if the data came from one.
    """
    place: dict[str, Any] = {"global_rank": rank, "local_rank": rank, "world_size": ranks, "is_global_zero": rank == 0}
    root = str(Path.cwd())
    known = place | {"node_rank": 0, "num_nodes": 1, "num_devices": ranks, "device_ids": list(range(ranks))}
    known |= {"default_root_dir": root, "log_dir": root, "logger": None, "loggers": [], "callbacks": [writer]}
    known |= {"predicting": True, "training": False, "validating": False, "testing": False, "sanity_checking": False}
    known |= {"current_epoch": 0, "global_step": 0, "ckpt_path": None, "limit_predict_batches": 1.0}
    known |= {
        "state": _state(type(writer)),
        "predict_dataloaders": loaders,
        "num_predict_batches": list(batches),
        "predict_loop": StandIn("trainer.predict_loop", _loop(batches)),
        "strategy": StandIn("trainer.strategy", {**place, **_strategy(ranks)}),
        "datamodule": datamodule,
        "print": print if rank == 0 else lambda *_: None,
    }
    return StandIn("trainer", known)


def _state(writer: type) -> Any:
    """The state of a Trainer that predicts, of the package that the writer comes from."""
    base = next(base for base in writer.__mro__ if base.__name__ == "BasePredictionWriter")
    states = importlib.import_module(f"{base.__module__.partition('.callbacks')[0]}.trainer.states")
    return states.TrainerState(
        fn=states.TrainerFn.PREDICTING,
        status=states.TrainerStatus.RUNNING,
        stage=states.RunningStage.PREDICTING,
    )


def _loop(batches: Sequence[int]) -> dict[str, Any]:
    return {
        "current_batch_indices": [],
        "epoch_batch_indices": [[] for _ in batches],
        "predictions": [],
        "num_dataloaders": len(batches),
        "max_batches": list(batches),
        "return_predictions": False,
    }


def _strategy(ranks: int) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    def barrier(name: str | None = None) -> None:
        del name
        if ranks > 1:
            dist.barrier()

    def broadcast(value: Any, src: int = 0) -> Any:
        boxed = [value]
        if ranks > 1:
            dist.broadcast_object_list(boxed, src)
        return boxed[0]

    return {"barrier": barrier, "broadcast": broadcast, "root_device": torch.device("cpu")}


def make_module(name: str, trainer: StandIn) -> StandIn:
    """A stand-in for the LightningModule; its class has the artifact's name, which some writers put into a path."""
    import torch

    def predict_step(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> NoReturn:
        del batch, batch_idx, dataloader_idx
        raise NotThereError("module.predict_step: the artifact has predicted already; use the predictions as they come")

    known = {
        "trainer": trainer,
        "device": torch.device("cpu"),
        "training": False,
        "predict_step": predict_step,
        "print": trainer.print,
        **{name: getattr(trainer, name) for name in ("global_rank", "local_rank", "current_epoch", "global_step")},
    }
    module: StandIn = type(name, (StandIn,), {})("module", known)
    trainer.__dict__["lightning_module"] = trainer.__dict__["model"] = module
    return module
