"""A folder with an artifact, rows and a checkpoint, and a way to call the command line in it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploykit.cli import main
from tests.handmade import build

Call = Callable[..., int]

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width: int = 8, p: float = 0.5):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Dropout(p), nn.Linear(width, 3))

    def forward(self, x):
        return {"logits": self.body(x)}

class Fixed(Net):
    def forward(self, x):
        return x + torch.zeros(5, 4)

class NotAModule:
    pass
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test: ``model`` (an artifact), ``rows.npy`` (40 rows), ``net.py``."""
    build(tmp_path / "model")
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32))
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(place: Path) -> Call:
    """Run the command line in this process; gives the exit code."""

    def run(*words: str) -> int:
        with pytest.raises(SystemExit) as stop:
            main(list(words))
        return int(stop.value.code or 0)

    return run


@pytest.fixture
def checkpoint(place: Path) -> Path:
    """``net.pt``: the weights of ``Net(width=6)``, with hyperparameters, as Lightning saves them."""
    import torch

    from deploykit.registry import import_target

    module = import_target("net.py:Net")(6)
    state = {f"model.{name}": value for name, value in module.state_dict().items()}
    content = {"state_dict": state, "hyper_parameters": {"width": 6}, "pytorch-lightning_version": "2.6.6"}
    torch.save(content, place / "net.ckpt")
    return place / "net.ckpt"
