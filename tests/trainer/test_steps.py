"""``--method predict_step``: what Lightning's own ``Trainer.predict`` gives, its hooks included, or a refusal."""

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import deploykit
from deploykit.errors import ExportError, UsageError
from tests.trainer.recording import predict

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))


class Net(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))
        self.scale = 1.0

    def forward(self, x: Tensor) -> Any:
        return self.body(x) * self.scale

    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self(batch)


class After(Net):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch * 3


class Augmented(Net):
    """As Lightning's documentation has it: what is done in training is not done in prediction."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch * 3 if self.trainer.training else batch + 1


class Transferred(Net):
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return super().transfer_batch_to_device(batch, device, dataloader_idx) * 3


class Started(Net):
    def on_predict_start(self) -> None:
        self.scale = 5.0


class EpochStarted(Net):
    def on_predict_epoch_start(self) -> None:
        self.scale = 5.0


class BatchStarted(Net):
    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.scale = float(batch.ndim)


class WithoutNumber(Net):
    def predict_step(self, batch: Tensor) -> Any:  # type: ignore[override]
        return self(batch).softmax(1)


class Staged(Net):
    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        assert self.global_rank == 0
        return self(batch) * (2 if self.trainer.predicting else 3)


class Logging(Net):
    def test_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.log("mean", self(batch).mean())
        return self(batch) * (2 if self.trainer.testing else 3)


class Printing(Net):
    """What a LightningModule does in one process, with and without a Trainer."""

    def on_predict_start(self) -> None:
        self.print("start")
        self.scale = 2.0 if self.trainer.is_global_zero and self.trainer.world_size == 1 else 3.0

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if self.trainer.global_rank == 0:
            self.print("batch", batch_idx)


class Quiet(Net):
    """The number of the batch decides what is printed, not what is computed."""

    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        if batch_idx % 100 == 0:
            print("batch", batch_idx)
        return self(batch)


class Thresholded(Net):
    """A third parameter of another name is the user's own."""

    def predict_step(self, batch: Tensor, batch_idx: int, threshold: float = 0.5) -> Any:
        return (self(batch).sigmoid() > threshold).float()


class OneLoader(Net):
    """A Trainer with one dataloader gives no number of it."""

    def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int | None = None) -> Any:
        return self(batch) * (2 if dataloader_idx is None else 3)


class AnyArguments(Net):
    def predict_step(self, *given: Any) -> Any:
        return self(given[0]) * len(given)


class Counting(Net):
    """What it keeps from batch to batch, no result depends on."""

    def on_predict_start(self) -> None:
        self.batches = 0

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.batches += 1


def exported(module: nn.Module, path: Path, method: str = "predict_step", **options: Any) -> Any:
    return deploykit.export(module, path, inputs=["x:float32[batch,4]"], method=method, formats=["onnx"], **options)


def predicted(path: Path) -> Any:
    with deploykit.load(path) as model:
        return model.predict(ROWS.numpy())


@pytest.mark.parametrize(
    "kind",
    [
        After, Augmented, Transferred, Started, EpochStarted, BatchStarted, WithoutNumber, Staged, Quiet,
        Thresholded, Counting, Printing,
    ],
)  # fmt: skip
def test_a_step_is_what_the_trainer_makes_of_it(tmp_path: Path, kind: type[Net]) -> None:
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, barebones=True)
    want = torch.cat(trainer.predict(kind(), DataLoader(ROWS, batch_size=3)))  # type: ignore[arg-type]
    module = kind()
    result = exported(module, tmp_path / "a")
    np.testing.assert_allclose(predicted(tmp_path / "a")["output"], want, rtol=1e-5, atol=1e-6)
    assert not result.notes
    assert module.scale == 1.0
    assert module._trainer is None


@pytest.mark.parametrize("kind", [OneLoader, AnyArguments])
def test_one_dataloader_has_no_number(tmp_path: Path, kind: type[Net]) -> None:
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, barebones=True)
    want = torch.cat(trainer.predict(kind(), DataLoader(ROWS, batch_size=3)))  # type: ignore[arg-type]
    (note,) = exported(kind(), tmp_path / "a").notes
    assert "other values with another dataloader_idx; the file computes those of a Trainer with one" in note
    np.testing.assert_allclose(predicted(tmp_path / "a")["output"], want, rtol=1e-5, atol=1e-6)


class Running(Net):
    """Divides by the sum of the largest values so far."""

    def on_predict_start(self) -> None:
        self.largest = torch.zeros(1)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.largest = self.largest + batch.abs().max()
        return self(batch) / self.largest


class First(Net):
    """Subtracts what the first batch gave."""

    first: Tensor | None = None

    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        if self.first is None:
            self.first = batch.max()
        return self(batch) - self.first


class FirstOfEpoch(First):
    def on_predict_epoch_start(self) -> None:
        self.first = None


@pytest.mark.parametrize("kind", [Running, First, FirstOfEpoch])
def test_what_is_kept_from_batch_to_batch_is_refused(tmp_path: Path, kind: type[Net]) -> None:
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, barebones=True)
    rows = [torch.cat(trainer.predict(kind(), DataLoader(ROWS, batch_size=size))) for size in (1, 7)]  # type: ignore[arg-type]
    assert not torch.allclose(rows[0][-1], rows[1][-1])
    with pytest.raises(ExportError, match="or after another batch"):
        exported(kind(), tmp_path / "a")


def test_what_a_hook_after_the_step_changes_is_told(tmp_path: Path) -> None:
    class Ending(Net):
        def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            outputs.mul_(10)

        def on_predict_epoch_end(self) -> None:
            pass

    first, second = exported(Ending(), tmp_path / "a").notes
    assert first.startswith("Ending.on_predict_batch_end: is no part of the file")
    assert second.startswith("Ending.on_predict_epoch_end: is no part of the file")


def test_a_compiled_module_has_its_hooks(tmp_path: Path) -> None:
    module = After()
    exported(torch.compile(module, backend="eager"), tmp_path / "a")  # type: ignore[arg-type]
    want = module.eval()(ROWS * 3)
    np.testing.assert_allclose(predicted(tmp_path / "a")["output"], want.detach(), rtol=1e-5, atol=1e-6)


def test_a_test_step_logs_nothing_and_knows_its_stage(tmp_path: Path) -> None:
    module = Logging()
    exported(module, tmp_path / "a", method="test_step")
    want = module.eval()(ROWS) * 2
    np.testing.assert_allclose(predicted(tmp_path / "a")["output"], want.detach(), rtol=1e-5, atol=1e-6)


def test_a_module_that_a_trainer_has_fitted_keeps_it(tmp_path: Path) -> None:
    module = Staged()
    predict([], DataLoader(ROWS, batch_size=4))
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, barebones=True)
    trainer.predict(module, DataLoader(ROWS, batch_size=4))
    exported(module, tmp_path / "a")
    assert module._trainer is trainer
    np.testing.assert_allclose(predicted(tmp_path / "a")["output"], (module.eval()(ROWS) * 2).detach(), rtol=1e-5)


def test_dropouts_that_a_hook_switches_on_draw(tmp_path: Path) -> None:
    """They came out deterministic, without a word."""

    class Drawing(Net):
        def on_predict_start(self) -> None:
            self.body[2].train()

    module = Drawing()
    exported(module, tmp_path / "one")
    with deploykit.load(tmp_path / "one") as model:
        first, second = (model.predict(ROWS.numpy(), seed=seed)["output"] for seed in (1, 2))
    assert not np.allclose(first, second)
    exported(module, tmp_path / "many", mc_draws=5)
    assert (predicted(tmp_path / "many")["output.std"] > 0).all()
    assert module.body[2].training  # As it came: a new module is in training mode.


@pytest.mark.parametrize("number", [0, 7])
def test_the_number_of_a_batch_is_refused(tmp_path: Path, number: int) -> None:
    class Numbered(Net):
        def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
            return {"y": self(batch), "number": torch.full((batch.shape[0],), batch_idx + number)}

    with pytest.raises(ExportError, match="predict_step of Numbered: gives other values with another batch_idx"):
        exported(Numbered(), tmp_path / "a")

    class Listed(Net):
        def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
            return self(batch) * [1.0][batch_idx]

    with pytest.raises(ExportError, match="another batch_idx"):
        exported(Listed(), tmp_path / "a")


def test_a_dataloaders_number_is_that_of_the_first(tmp_path: Path) -> None:
    class Several(Net):
        def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return self(batch) * (1 + dataloader_idx)

    module = Several()
    assert "dataloader_idx" in " ".join(exported(module, tmp_path / "a").notes)
    np.testing.assert_allclose(predicted(tmp_path / "a")["output"], module.eval()(ROWS).detach(), rtol=1e-5, atol=1e-6)


def test_what_no_export_can_know_is_refused(tmp_path: Path) -> None:
    class Needs(Net):
        def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int) -> Any:  # type: ignore[override]
            return self(batch)

    class Modes(Net):
        def on_predict_model_eval(self) -> None:
            self.train()

    class Asking(Net):
        def on_predict_start(self) -> None:
            self.scale = self.trainer.datamodule.scale  # type: ignore[attr-defined]

    with pytest.raises(UsageError, match="give dataloader_idx the default 0"):
        exported(Needs(), tmp_path / "a")
    with pytest.raises(ExportError, match=r"Modes\.on_predict_model_eval: sets the modes"):
        exported(Modes(), tmp_path / "a")
    with pytest.raises(ExportError, match=r"self\.trainer\.datamodule: the module is not attached"):
        exported(Asking(), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_forward_says_which_hooks_it_leaves_out(tmp_path: Path) -> None:
    (note,) = exported(After(), tmp_path / "a", method="forward").notes
    assert note.startswith("After.on_after_batch_transfer: is no part of forward")


class InItsStep(Net):
    """As in Lightning's documentation: the loop around the model, and its dropout, are in the step."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = nn.Sequential(nn.Linear(4, 3)), nn.Dropout(0.5)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.drop.train()
        return torch.stack([self.drop(self(batch)) for _ in range(5)]).mean(0)


def test_a_step_that_draws_is_named_where_forward_does_not(tmp_path: Path) -> None:
    advice = r"in forward .*; export without --mc-draws, or with --method predict_step if it draws there"
    with pytest.raises(ExportError, match=advice):
        exported(InItsStep(), tmp_path / "a", method="forward", mc_draws=3)
    found = exported(InItsStep(), tmp_path / "c")
    assert found.manifest.monte_carlo is not None
    assert [output.name for output in found.manifest.outputs] == ["output"], "its mean alone"
    (note,) = exported(InItsStep(), tmp_path / "e", mc_draws=3).notes
    assert note.startswith("the module's own loop makes 5 passes in each draw: where it averages them, std is")
