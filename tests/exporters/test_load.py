"""From a file and a class to a module with its weights, as a user calls it."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deploykit.errors import CheckpointError, UsageError
from exporters.checkpoint.load import load_module
from tests.exporters.checkpoints import Net, saved

USER_CODE = '''
import torch
import lightning as L
from torch import nn


class Steps(L.LightningModule):
    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, index):
        return self(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class Lit(Steps):
    def __init__(self, hidden: int, p: float = 0.1):
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.Dropout(p), nn.Linear(hidden, 2))


class Old(Steps):
    def __init__(self, hparams):
        super().__init__()
        self.save_hyperparameters(hparams)
        self.model = nn.Sequential(nn.Linear(4, self.hparams.hidden), nn.Linear(self.hparams.hidden, 2))


class Late(Steps):
    """Builds its layers late, and keeps its words in the checkpoint."""

    def __init__(self, hidden: int):
        super().__init__()
        self.save_hyperparameters()
        self.model, self.words = None, ["a", "b"]

    def configure_model(self):
        if self.model is None:
            self.model = nn.Linear(4, self.hparams.hidden)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["words"] = self.words

    def on_load_checkpoint(self, checkpoint):
        self.words = checkpoint["words"]


def inner(hidden):
    return Lit(hidden).model
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with user code and checkpoints that Lightning's Trainer wrote, in another process as in real life."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "net.py").write_text(USER_CODE)
    (folder / "train.py").write_text(
        "import argparse, lightning as L, net, torch\n"
        "data = torch.utils.data.TensorDataset(torch.randn(8, 4))\n"
        "late = net.Late(3)\n"
        "late.words = ['x', 'y', 'z']\n"
        "old = net.Old(argparse.Namespace(hidden=6))\n"
        "for name, module in dict(lit=net.Lit(8, p=0.3), old=old, late=late).items():\n"
        "    trainer = L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,\n"
        "                        accelerator='cpu', enable_model_summary=False)\n"
        "    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4))\n"
        "    trainer.save_checkpoint(f'{name}.ckpt')\n"
        "    torch.save(module.eval()(torch.ones(2, 4)).detach(), f'{name}.out')\n"
    )
    subprocess.run([sys.executable, "train.py"], cwd=folder, check=True)
    return folder


@pytest.fixture(autouse=True)
def _quiet_lightning() -> Any:
    """Importing Lightning warns about its own dependencies."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize(("name", "target"), [("lit", "Lit"), ("lit", "inner"), ("old", "Old"), ("late", "Late")])
def test_lightning_checkpoint(project: Path, name: str, target: str) -> None:
    loaded = load_module(project / f"{name}.ckpt", f"{project}/net.py:{target}")
    assert not any(part.training for part in loaded.module.modules())
    expected = torch.load(project / f"{name}.out", weights_only=True)
    assert torch.equal(loaded.module(torch.ones(2, 4)), expected)
    assert loaded.notes[0].startswith("Lightning checkpoint (version 2.")
    assert loaded.record["kind"] == "lightning"
    assert loaded.record["module"] == ("Sequential" if target == "inner" else target)
    if target == "inner":
        assert "keys: the prefix 'model.' was taken off" in loaded.notes
        assert any("does not take: p" in note for note in loaded.notes)
    if target == "Late":
        assert loaded.module.words == ["x", "y", "z"]
        assert "the module's own on_load_checkpoint was called" in loaded.notes


def test_arguments_override_the_file(project: Path) -> None:
    loaded = load_module(project / "lit.ckpt", f"{project}/net.py:Lit", arguments={"p": 0.9})
    assert loaded.module.model[2].p == 0.9
    with pytest.raises(CheckpointError, match=r"model\.0\.weight is \[8, 4\] in the file, \[5, 4\] in the module"):
        load_module(project / "lit.ckpt", f"{project}/net.py:Lit", arguments={"hidden": 5})


def test_wrong_class(project: Path) -> None:
    with pytest.raises(CheckpointError, match="does not fit Old") as caught:
        load_module(project / "lit.ckpt", f"{project}/net.py:Old")
    assert "unexpected: model.1.running_mean" in str(caught.value)


def test_instance_is_filled_and_nothing_else_touched(tmp_path: Path) -> None:
    source, module = Net(), Net()
    module.train()
    module.net[1].eval()
    modes = [part.training for part in module.modules()]
    parameters = dict(module.named_parameters())
    loaded = load_module(saved(tmp_path / "model.pt", source.state_dict()), module)
    assert loaded.module is module
    assert [part.training for part in module.modules()] == modes
    assert all(parameters[name] is parameter for name, parameter in module.named_parameters())
    assert torch.equal(module.net[0].weight, source.net[0].weight)
    assert module.net[0].weight.requires_grad


def test_instance_is_untouched_when_the_weights_do_not_fit(tmp_path: Path) -> None:
    module = Net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = Net().state_dict()
    del state["net.3.bias"]
    with pytest.raises(CheckpointError, match=r"missing: net\.3\.bias"):
        load_module(saved(tmp_path / "model.pt", state), module)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_class_object_and_the_weights_outlive_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", {"model": Net(5).state_dict(), "config": {"hidden": 5}})
    loaded = load_module(path, Net)
    assert loaded.record == {
        "file": "model.pt",
        "kind": "state_dict",
        "module": "Net",
        "sha256": loaded.record["sha256"],
        "size_bytes": path.stat().st_size,
        "unsafe": False,
    }
    before = loaded.module.net[0].weight.clone()
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(loaded.module.net[0].weight, before)


def test_whole_module_and_no_class(tmp_path: Path) -> None:
    net = Net()
    path = saved(tmp_path / "whole.pt", net)
    loaded = load_module(path, unsafe=True)
    assert torch.equal(loaded.module.net[0].weight, net.net[0].weight)
    assert not loaded.module.training
    assert load_module(path, Net, unsafe=True).record["unsafe"] is True
    with pytest.raises(CheckpointError, match="--unsafe-load"):
        load_module(path)
    with pytest.raises(UsageError, match=r"holds weights without their class; .*--module package\.module:Class"):
        load_module(saved(tmp_path / "weights.pt", net.state_dict()))


def test_usage_comes_before_reading(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_module(tmp_path / "missing.ckpt", "nothing.py:Net")
    with pytest.raises(UsageError, match="built already"):
        load_module(tmp_path / "missing.ckpt", Net(), arguments={"hidden": 3})


def test_module_that_refuses(tmp_path: Path) -> None:
    class Picky(nn.Linear):
        def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
            raise ValueError("not today")

    path = saved(tmp_path / "model.pt", nn.Linear(2, 2).state_dict())
    with pytest.raises(CheckpointError, match="Picky refused its weights: not today"):
        load_module(path, Picky(2, 2))


def test_a_class_that_exits(tmp_path: Path) -> None:
    def build() -> nn.Module:
        sys.exit(0)

    path = saved(tmp_path / "model.pt", nn.Linear(2, 2).state_dict())
    with pytest.raises(CheckpointError, match="building it failed: SystemExit: 0"):
        load_module(path, build)
