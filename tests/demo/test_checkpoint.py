"""The demo's checkpoint is what Lightning writes: Lightning itself loads it and goes on training from it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from deploykit.demo.checkpoint import save_checkpoint
from deploykit.demo.digits import load_digits
from deploykit.demo.network import DigitsNet
from deploykit.demo.training import Recipe, Trained, probabilities, train
from exporters.checkpoint.load import load_module

lightning = pytest.importorskip("lightning")

RECIPE = Recipe(
    epochs=2,
    hyperparameters={"channels": 4, "hidden": 16, "classes": 10, "p_features": 0.2, "p_hidden": 0.3},
)


class Wrapper(lightning.LightningModule):  # type: ignore[name-defined, misc]
    """The LightningModule that the demo spares its users: it trains the same network in the same way."""

    def __init__(
        self, channels: int = 16, hidden: int = 128, classes: int = 10, p_features: float = 0.2, p_hidden: float = 0.3
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = DigitsNet(channels, hidden, classes, p_features, p_hidden)

    def training_step(self, batch: list[torch.Tensor], _index: int) -> torch.Tensor:
        return functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=RECIPE.learning_rate, weight_decay=1e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=RECIPE.epochs)]


def fitted(epochs: int, resume: Path | None = None) -> Any:
    digits = load_digits()
    rows = torch.utils.data.TensorDataset(torch.from_numpy(digits.train_images), torch.from_numpy(digits.train_labels))
    loader = torch.utils.data.DataLoader(rows, batch_size=RECIPE.batch_size)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Wrapper(**RECIPE.hyperparameters), loader, ckpt_path=resume)
    return trainer


@pytest.fixture(scope="module")
def trained() -> Trained:
    digits = load_digits()
    return train(digits.train_images, digits.train_labels, seed=3, recipe=RECIPE)


@pytest.fixture(scope="module")
def path(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "digits.ckpt"
    save_checkpoint(path, trained)
    return path


def layout(value: Any) -> Any:
    """Keys and types, without the values."""
    if isinstance(value, dict):
        return {key: layout(item) for key, item in value.items()}
    if isinstance(value, list):
        return [layout(item) for item in value]
    return (type(value), tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value)


@pytest.mark.filterwarnings("ignore")
def test_it_has_the_layout_and_the_counts_of_a_real_one(path: Path, tmp_path: Path) -> None:
    fitted(RECIPE.epochs).save_checkpoint(tmp_path / "real.ckpt")
    real = torch.load(tmp_path / "real.ckpt", weights_only=True)
    ours = torch.load(path, weights_only=True)
    assert layout(ours) == layout(real)
    for same in ("epoch", "global_step", "loops", "hparams_name", "hyper_parameters", "callbacks", "lr_schedulers"):
        assert ours[same] == real[same]
    assert list(ours["state_dict"]) == list(real["state_dict"])
    assert ours["optimizer_states"][0]["param_groups"] == real["optimizer_states"][0]["param_groups"]


def test_lightning_loads_it(path: Path, trained: Trained) -> None:
    loaded = Wrapper.load_from_checkpoint(path, weights_only=True)
    images = load_digits().images[:50]
    expected = probabilities(trained.network, images)
    assert probabilities(loaded.network.eval(), images).tobytes() == expected.tobytes()
    assert dict(loaded.hparams) == dict(RECIPE.hyperparameters)


@pytest.mark.filterwarnings("ignore")
def test_lightning_goes_on_training_from_it(path: Path) -> None:
    trainer = fitted(RECIPE.epochs + 1, resume=path)
    assert trainer.current_epoch == RECIPE.epochs + 1
    assert trainer.global_step == (RECIPE.epochs + 1) * 15


def test_our_own_loader_takes_the_prefix_off(path: Path, trained: Trained) -> None:
    loaded = load_module(path, DigitsNet)
    weights = trained.network.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in loaded.module.state_dict().items())
    assert any("'network.'" in note for note in loaded.notes)


def test_training_is_repeatable_and_leaves_no_trace(trained: Trained) -> None:
    digits = load_digits()
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    again = train(digits.train_images, digits.train_labels, seed=3, recipe=RECIPE)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not again.network.training
    first, second = (probabilities(each.network, digits.images) for each in (trained, again))
    assert np.array_equal(first, second)
    other = train(digits.train_images, digits.train_labels, seed=4, recipe=RECIPE)
    assert not np.array_equal(first, probabilities(other.network, digits.images))
