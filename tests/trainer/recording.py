"""A prediction writer that records every call that it gets, and a module to predict with.

Used twice on the same data: by Lightning's own Trainer and by ``deploykit run``. FLAVOUR chooses the package.
"""

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests import handmade
from tests.trainer.rows import make_two

PACKAGE = os.environ.get("FLAVOUR", "lightning.pytorch")
Base: Any = importlib.import_module(f"{PACKAGE}.callbacks").BasePredictionWriter

FACTS = (
    "global_rank", "local_rank", "node_rank", "world_size", "num_nodes", "num_devices", "is_global_zero",
    "num_predict_batches", "predicting", "training", "sanity_checking", "default_root_dir",
)  # fmt: skip


class Recorder(Base):  # type: ignore[misc]
    """Saves ``calls-{rank}.pt`` at teardown: name and arguments of every call, with what it saw of the trainer."""

    def __init__(self, folder: str, write_interval: str) -> None:
        super().__init__(write_interval)
        self.folder, self.calls = Path(folder), []

    def note(self, name: str, trainer: Any, module: Any, *arguments: Any) -> None:
        facts = {fact: getattr(trainer, fact) for fact in FACTS}
        loaders = trainer.predict_dataloaders
        if name not in ("setup", "teardown"):
            facts["kind"] = type(loaders).__name__
            loaders = list(loaders.values()) if isinstance(loaders, dict) else loaders
            loaders = loaders if isinstance(loaders, list) else [loaders]
            # A file has no dataset, and what stands in for its loader says so.
            facts["loaders"] = [(len(one), isinstance(one, DataLoader) and len(one.dataset)) for one in loaders]
        facts["mode"] = (torch.is_inference_mode_enabled(), module.training, str(module.device))
        self.calls.append((name, arguments, facts))

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.calls.append(("setup", str(stage), trainer.global_rank))

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self.note("on_predict_start", trainer, pl_module)

    def on_predict_epoch_start(self, *both: Any) -> None:
        self.note("on_predict_epoch_start", *both)

    def on_predict_batch_start(self, *arguments: Any) -> None:
        self.note("on_predict_batch_start", *arguments)

    def on_predict_batch_end(self, *arguments: Any) -> None:
        self.note("on_predict_batch_end", *arguments)
        super().on_predict_batch_end(*arguments)

    def write_on_batch_end(self, *arguments: Any) -> None:
        self.note("write_on_batch_end", *arguments)

    def write_on_epoch_end(self, *arguments: Any) -> None:
        self.note("write_on_epoch_end", *arguments)

    def on_predict_epoch_end(self, *both: Any) -> None:
        super().on_predict_epoch_end(*both)
        self.note("on_predict_epoch_end", *both)

    def on_predict_end(self, *both: Any) -> None:
        self.note("on_predict_end", *both)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.calls.append(("teardown", str(stage), trainer.global_rank))
        self.folder.mkdir(exist_ok=True)
        torch.save(self.calls, self.folder / f"calls-{trainer.global_rank}.pt")


class DocsWriter(Base):  # type: ignore[misc]
    """The example of Lightning's documentation."""

    def __init__(self, output_dir: str, write_interval: str) -> None:
        super().__init__(write_interval)
        self.output_dir = output_dir

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        torch.save(predictions, os.path.join(self.output_dir, f"predictions_{trainer.global_rank}.pt"))  # noqa: PTH118
        torch.save(batch_indices, os.path.join(self.output_dir, f"batch_indices_{trainer.global_rank}.pt"))  # noqa: PTH118


def make_two_of_a_module() -> Any:
    """The same from a LightningDataModule, by name."""
    lightning = importlib.import_module(PACKAGE)

    class Module(lightning.LightningDataModule):  # type: ignore[misc]
        def predict_dataloader(self) -> Any:
            return dict(zip(("near", "far"), make_two(), strict=True))

    return Module()


class Plain(nn.Module):
    """The same as the handmade artifact ``plain``, or with ``bare`` one tensor without a name."""

    def __init__(self, bare: bool = False) -> None:
        super().__init__()
        self.w, self.b, self.bare = nn.Parameter(torch.from_numpy(handmade.W)), torch.from_numpy(handmade.B), bare

    def forward(self, x: torch.Tensor) -> Any:
        logits = x @ self.w + self.b
        return logits if self.bare else {"logits": logits, "aux.norm": (x * x).sum(1)}


def make_module(inner: nn.Module) -> Any:
    """A LightningModule around it."""
    lightning = importlib.import_module(PACKAGE)

    class Net(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return self.inner(batch[0] if isinstance(batch, list | tuple) else batch)

    return Net()


def predict(callbacks: list[Any], loaders: Any, *, inner: nn.Module | None = None, **options: Any) -> Any:
    """``Trainer.predict`` on the CPU without anything that prints."""
    lightning = importlib.import_module(PACKAGE)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = lightning.Trainer(accelerator="cpu", callbacks=callbacks, **quiet, **options)
    trainer.predict(make_module(inner or Plain()), loaders, return_predictions=False)
    return trainer


def same(a: Any, b: Any) -> bool:
    """Equal in structure and type; tensors to within rounding."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and bool(np.allclose(a, b, rtol=1e-5, atol=1e-6))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
