"""One side of ``mc_speed``: Lightning's ``Trainer.predict`` with a Monte Carlo loop in ``predict_step``.

Runs as a process of its own, ``python -m benchmarks.mc_lightning CASE ROWS BATCH RANKS``, in an empty directory, and
leaves ``seconds.json`` there: the seconds of the second ``predict`` of the process, so that imports, start-up and the
ranks' meeting are over. Predictions are written after every batch, as Lightning's writer does.
"""

import json
import sys
import warnings
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.mc_models import CASES, OutputDropout

__all__: list[str] = []

DRAWS = 50


class Loop(LightningModule):
    """Mean and deviation over draws; dropouts draw, and nothing else of training mode applies to these models."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def predict_step(self, batch: Tensor, _index: int) -> dict[str, Tensor]:
        self._switch_on()
        draws = torch.stack([self.model(batch) for _ in range(DRAWS)])
        return {"mean": draws.mean(0), "std": draws.std(0)}

    def _switch_on(self) -> None:
        # The encoder layers' own flag turns on the dropout inside attention; the models hold no batch statistics.
        self.model.train()


class Documented(Loop):
    """The example of Lightning's documentation, which runs the model again for every draw."""

    def _switch_on(self) -> None:
        self.model.dropout.train()


class Writer(BasePredictionWriter):
    def __init__(self) -> None:
        super().__init__("batch")

    def write_on_batch_end(self, trainer: Any, _module: Any, prediction: Any, *rest: Any) -> None:
        torch.save(prediction, f"predictions-{trainer.global_rank}-{rest[2]}.pt")


class Rows(Dataset[Tensor]):
    def __init__(self, data: Tensor) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index]


def main(name: str, rows: int, batch: int, ranks: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(2 // ranks)
    case = CASES[name]
    module = Documented(case.seeded()) if case.build is OutputDropout else Loop(case.seeded())
    data = torch.randint(case.integers, (rows, *case.shape)) if case.integers else torch.randn(rows, *case.shape)
    trainer = Trainer(
        accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", logger=False, callbacks=[Writer()],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.predict(module, DataLoader(Rows(data[: batch * ranks]), batch), return_predictions=False)
    loader = DataLoader(Rows(data), batch)
    trainer.strategy.barrier()
    began = perf_counter()
    trainer.predict(module, loader, return_predictions=False)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        Path("seconds.json").write_text(json.dumps(perf_counter() - began))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
