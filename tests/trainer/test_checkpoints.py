"""Checkpoints of LightningModules that do not make everything of their constructor's arguments."""

import argparse
import dataclasses
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from exporters.checkpoint.load import load_module

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def save(module: lightning.LightningModule, path: Path, **more: Any) -> Path:
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, barebones=True)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    if more:
        torch.save({**torch.load(path, weights_only=False), **more}, path)
    return path


class Base(lightning.LightningModule):
    head: Any

    def forward(self, x: Tensor) -> Any:
        return self.head(x)


class SetUp(Base):
    """As in Lightning's documentation of ``setup``."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.head = None

    def setup(self, stage: str) -> None:
        self.head = self.head or nn.Linear(4, self.hparams["classes"])


def test_layers_that_setup_makes(tmp_path: Path) -> None:
    module = SetUp(5)
    module.setup("fit")
    path = save(module, tmp_path / "a.ckpt")
    before = torch.get_rng_state()
    loaded = load_module(path, SetUp)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(loaded.module(ROWS), module(ROWS))
    assert "SetUp.setup('predict') was called, because the weights did not fit without it" in loaded.notes
    assert loaded.module._trainer is None  # type: ignore[union-attr]


def test_layers_that_configure_model_makes_by_the_stage(tmp_path: Path) -> None:
    class Configuring(Base):
        def __init__(self, width: int = 2) -> None:
            super().__init__()
            self.head = None

        def configure_model(self) -> None:
            self.head = self.head or nn.Linear(4, 7 if self.trainer.training else 2)

    module = Base()
    module.head = nn.Linear(4, 2)
    loaded = load_module(save(module, tmp_path / "a.ckpt"), Configuring)
    assert torch.equal(loaded.module(ROWS), module(ROWS))


def test_a_setup_that_needs_a_trainer_says_so(tmp_path: Path) -> None:
    class OfData(SetUp):
        def setup(self, stage: str) -> None:
            self.head = nn.Linear(4, self.trainer.datamodule.classes)  # type: ignore[attr-defined]

    class Wider(Base):
        def __init__(self, classes: int = 3) -> None:
            super().__init__()
            self.head = nn.Linear(4, classes)

        def setup(self, stage: str) -> None:
            raise AssertionError

    module = SetUp(5)
    module.setup("fit")
    path = save(module, tmp_path / "a.ckpt")
    with pytest.raises(
        CheckpointError, match=r"2 unexpected(.|\n)*setup\('predict'\), which may make layers.*datamodule"
    ):
        load_module(path, OfData)
    assert "Wider.setup() was not called" in " ".join(load_module(path, Wider).notes)
    with pytest.raises(CheckpointError, match="of another shape"):
        load_module(path, Wider(7))


class Frozen(Base):
    """Its backbone comes from elsewhere and is not saved."""

    def __init__(self, seed: int | None = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.strict_loading = False
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.backbone = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.backbone(x))

    def state_dict(self, *arguments: Any, **named: Any) -> Any:
        found = super().state_dict(*arguments, **named)
        return {name: value for name, value in found.items() if not name.startswith("backbone.")}


def test_weights_that_the_class_brings_along(tmp_path: Path) -> None:
    module = Frozen(7)
    loaded = load_module(save(module, tmp_path / "a.ckpt"), Frozen)
    assert torch.equal(loaded.module(ROWS), module(ROWS))
    (note,) = (note for note in loaded.notes if note.startswith("strict_loading = False"))
    assert note.endswith("backbone.weight, backbone.bias")


def test_weights_that_nothing_gives_are_refused(tmp_path: Path) -> None:
    """Lightning loads it without a word, and predicts with random weights."""
    path = save(Frozen(None), tmp_path / "a.ckpt")
    with pytest.raises(
        CheckpointError, match=r"leaves out backbone\.weight, backbone\.bias, which the constructor makes"
    ):
        load_module(path, Frozen)


class Extra(Frozen):
    """Its backbone has a state that is no tensor."""

    def __init__(self, seed: int | None = 1) -> None:
        super().__init__(seed)
        self.backbone = Recalling(4, 4)
        nn.init.ones_(self.backbone.weight), nn.init.zeros_(self.backbone.bias)


class Recalling(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"calls": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_a_state_that_is_no_tensor_is_refused_as_one(tmp_path: Path) -> None:
    path = save(Extra(), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"leaves out backbone\._extra_state, which is whatever get_extra_state"):
        load_module(path, Extra)


class Dropping(Frozen):
    """Leaves its backbone out of the file only, so that its state_dict has it."""

    state_dict = lightning.LightningModule.state_dict

    def on_save_checkpoint(self, checkpoint: Any) -> None:
        held = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in held.items() if not name.startswith("backbone.")}


def test_what_the_state_dict_of_the_class_has_is_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"2 missing"):
        load_module(save(Dropping(7), tmp_path / "a.ckpt"), Dropping)


@dataclasses.dataclass
class Body:
    width: int
    scale: float = 1.0

    def total(self) -> float:
        return self.width * self.scale


@dataclasses.dataclass
class Config:
    body: Body
    bias: bool = True


class Configured(Base):
    def __init__(self, config: Config | None, other: Any = None) -> None:
        super().__init__()
        assert config is not None
        self.save_hyperparameters({"config": dataclasses.asdict(config), "other": {"width": 1}})
        self.head, self.other = nn.Linear(4, config.body.width, bias=config.bias), other
        self.total = config.body.total()


class Whole(Configured):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._hparams = dataclasses.asdict(config)  # type: ignore[assignment]
        self._hparams_name = "config"


@pytest.mark.parametrize("kind", [Configured, Whole])
def test_dataclasses_that_were_saved_as_dicts(tmp_path: Path, kind: Any) -> None:
    module = kind(Config(Body(5, 2.0), bias=False))
    loaded = load_module(save(module, tmp_path / "a.ckpt"), kind)
    assert torch.equal(loaded.module(ROWS), module(ROWS))
    assert loaded.module.total == 10.0
    assert loaded.module.other == (None if kind is Whole else {"width": 1})


class Indexing(Base):
    """Annotated with a dataclass, but trained with a dict, which it was never made of."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.save_hyperparameters({"config": config})
        self.head = nn.Linear(4, config["width"])  # type: ignore[index]


def test_a_dict_stays_one_where_the_dataclass_does_not_do(tmp_path: Path) -> None:
    for held in ({"width": 3, "body": {"width": 1}}, {"width": 3}):
        module = Indexing(held)  # type: ignore[arg-type]
        loaded = load_module(save(module, tmp_path / "a.ckpt"), Indexing)
        assert torch.equal(loaded.module(ROWS), module(ROWS))


@dataclasses.dataclass
class Strict:
    width: int = 2
    depth: int = dataclasses.field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if self.depth > 5:
            raise ValueError("depth too large")


class OfStrict(Base):
    def __init__(self, config: Strict) -> None:
        super().__init__()
        self.head = nn.Linear(4, config.width)


class OfFields(Base):
    """Takes either, and says nothing."""

    def __init__(self, config: Strict, /) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)


def test_a_dataclass_that_refuses_what_was_saved(tmp_path: Path) -> None:
    held = {"config": {"width": 2, "depth": 9}}
    path = save(OfStrict(Strict()), tmp_path / "a.ckpt", hyper_parameters=held)
    with pytest.raises(CheckpointError, match=r"failed: ValueError: depth too large \(.*\.py:\d+\); it was called"):
        load_module(path, OfStrict)
    (note,) = (note for note in load_module(path, OfFields).notes if note.startswith("hyperparameters were given"))
    assert "ValueError: depth too large" in note


def test_vars_of_the_arguments(tmp_path: Path) -> None:
    class Parsed(Base):
        def __init__(self, args: Any) -> None:
            super().__init__()
            self.save_hyperparameters(vars(args))
            self.head = nn.Linear(4, self.hparams["width"])

    module = Parsed(argparse.Namespace(width=3, items=2))
    loaded = load_module(save(module, tmp_path / "a.ckpt"), Parsed)
    assert torch.equal(loaded.module(ROWS), module(ROWS))


class Composed(Base):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head


COMPOSED = {
    "_instantiator": "lightning.pytorch.cli.instantiate_module",
    "head": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 4, "out_features": 2}},
}


def test_objects_that_the_cli_made_need_leave(tmp_path: Path) -> None:
    module = Composed(nn.Linear(4, 2))
    path = save(module, tmp_path / "a.ckpt", hyper_parameters=COMPOSED)
    with pytest.raises(CheckpointError, match=r"LightningCLI made head \(torch\.nn\.Linear\).*--unsafe-load"):
        load_module(path, Composed)


def test_the_cli_makes_its_objects_again(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse")
    module = Composed(nn.Linear(4, 2))
    path = save(module, tmp_path / "a.ckpt", hyper_parameters=COMPOSED)
    assert torch.equal(load_module(path, Composed, unsafe=True).module(ROWS), module(ROWS))


def test_other_weights_in_the_file_are_told(tmp_path: Path) -> None:
    module = SetUp()
    module.setup("fit")
    average = {name: value * 2 for name, value in module.state_dict().items()}
    path = save(module, tmp_path / "a.ckpt", averaging_state=average, callbacks={"EMA": {"ema": average, "step": 3}})
    loaded = load_module(path, SetUp)
    assert torch.equal(loaded.module(ROWS), module(ROWS))
    assert "other weights in the file are not used: averaging_state, ema" in loaded.notes


SCRIPT = """
import dataclasses
import torch


@dataclasses.dataclass
class Sizes:
    width: int


class Net(torch.nn.Module):
    def __init__(self, sizes):
        super().__init__()
        assert isinstance(sizes, Sizes)
        self.head = torch.nn.Linear(4, sizes.width)

    def forward(self, x):
        return self.head(x)
"""


@pytest.mark.parametrize("name", ["__main__", "train"])
def test_classes_of_the_script_that_saved_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A script that is run is ``__main__`` to pickle, and here a file that is named, or no module at all."""
    (tmp_path / "train.py").write_text(SCRIPT)
    script: Any = ModuleType(name)
    exec(SCRIPT, vars(script))
    module = script.Net(script.Sizes(3))
    content = {"state_dict": module.state_dict(), "hyper_parameters": {"sizes": script.Sizes(3)}}
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, name, script)
        torch.save(content, tmp_path / "hparams.ckpt")
        torch.save(module, tmp_path / "whole.pt")
    for file in ("hparams.ckpt", "whole.pt"):
        loaded = load_module(tmp_path / file, f"{tmp_path}/train.py:Net", unsafe=True)
        assert torch.equal(loaded.module(ROWS), module(ROWS))
    advice = r"--module train\.py:Class" if name == "__main__" else "run the command where train can be imported"
    with pytest.raises(CheckpointError, match=advice):
        load_module(tmp_path / "whole.pt", unsafe=True)
