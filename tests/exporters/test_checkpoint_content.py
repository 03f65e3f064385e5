"""What is recognised in a file that can be read, and that its code does not run."""

import argparse
import collections
import hashlib
import os
import pickle
import sys
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploykit.errors import MissingExtraError
from exporters.checkpoint.reading import read_checkpoint
from tests.exporters.checkpoints import Net, refused, rewritten, saved


class Malice:
    """Its unpickling makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_does_not_run_by_default(tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content = {"state_dict": {"w": torch.ones(1)}, "extra": Malice(tmp_path / "ran")}
    path = saved(tmp_path / "model.pt", content, _use_new_zipfile_serialization=not legacy)
    refused(path, "posix.mkdir", "nothing in the file was run", "torch.save(model.state_dict()", "--unsafe-load")
    assert not (tmp_path / "ran").exists()
    read = read_checkpoint(path, unsafe=True)
    assert (tmp_path / "ran").exists()
    assert read.unsafe
    assert "code in the file was allowed to run" in read.notes[-1]


@pytest.mark.parametrize("function", [os.system, eval, exec, __import__, getattr])
def test_callables_behind_allowed_names(tmp_path: Path, function: Any) -> None:
    """A function called with harmless arguments is refused as well."""

    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return function, ("1",)

    path = saved(tmp_path / "model.pt", {"w": torch.ones(1), "call": Call()})
    refused(path, f"{function.__name__}", "refused; nothing in the file was run", "--unsafe-load")


def test_stand_ins_of_numpy_build_numbers_only(tmp_path: Path) -> None:
    """The names that plain values use, called with something else."""

    class Objects:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.dtype, ("O", False, True)

    refused(saved(tmp_path / "model.pt", {"w": torch.ones(1), "x": Objects()}), "cannot be decoded", "copy or download")


def test_plain_values_are_read(tmp_path: Path) -> None:
    values = {
        "space": argparse.Namespace(a=1),
        "path": Path("a/b"),
        "rate": np.float64(0.25),
        "count": np.int64(-3),
        "flag": np.bool_(True),
        "big": np.array([2.5], ">f4")[0],
        "names": frozenset({"a"}),
        "dtype": torch.float16,
        "nested": {"list": [1, (2, None)]},
    }
    content = {"state_dict": Net().state_dict(), "hyper_parameters": values}
    read = read_checkpoint(saved(tmp_path / "model.ckpt", content)).hyperparameters
    assert read == {**values, "path": PurePosixPath("a/b")}
    assert type(read["rate"]) is float


def test_classes_and_functions_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt", {"state_dict": Net().state_dict(), "hyper_parameters": {"act": nn.ReLU}})
    refused(path, "classes or functions besides tensors: torch.nn.modules.activation.ReLU (refused")
    path = saved(tmp_path / "b.pt", Net())
    refused(path, "tests.exporters.checkpoints.Net", "torch.nn.modules.linear.Linear")
    path = saved(tmp_path / "c.pt", Net(), _use_new_zipfile_serialization=False)
    refused(path, "tests.exporters.checkpoints.Net")


def test_unsafe_module(tmp_path: Path) -> None:
    net = Net()
    read = read_checkpoint(saved(tmp_path / "model.pt", net), unsafe=True)
    assert read.kind == "module"
    assert isinstance(read.module, Net)
    assert torch.equal(read.state_dict["net.0.weight"], net.net[0].weight)


def test_unsafe_without_the_class(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", Net())

    def renamed(name: str, data: bytes) -> bytes:
        return data.replace(b"tests.exporters.checkpoints", b"tests.exporters.checkpointz")

    refused(rewritten(path, tmp_path / "b.pt", renamed), "unsafe loading failed: ModuleNotFoundError", unsafe=True)


def test_newer_pickle_protocol(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", Net().state_dict(), pickle_protocol=4)
    refused(path, "pickled with protocol 4 or newer", "torch.save's own protocol")


def test_raw_pickle_and_self_reference(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"w": 1}))
    refused(tmp_path / "a.pt", "a pickle that torch.save did not write")
    loop: dict[str, Any] = {"w": torch.ones(1)}
    loop["self"] = loop
    assert read_checkpoint(saved(tmp_path / "b.pt", {"state_dict": {"w": torch.ones(1)}, "loop": loop}))


def test_facts_of_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", Net().state_dict())
    read = read_checkpoint(str(path))
    assert read.kind == "state_dict"
    assert read.size_bytes == path.stat().st_size
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (read.hyperparameters, read.notes, read.unsafe, read.module) == ({}, (), False, None)
    assert list(read.state_dict) == list(Net().state_dict())


def test_old_format(tmp_path: Path) -> None:
    net = Net()
    path = saved(tmp_path / "model.pth", net.state_dict(), _use_new_zipfile_serialization=False)
    read = read_checkpoint(path)
    assert torch.equal(read.state_dict["net.3.weight"], net.net[3].weight)
    assert "no checksums" in read.notes[0]


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "anything"])
def test_wrapped(tmp_path: Path, key: str) -> None:
    content = {
        key: Net().state_dict(),
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "epoch": 3,
        "loss": torch.tensor(0.5) if key != "anything" else 0.5,
        "args": argparse.Namespace(hidden=8),
    }
    read = read_checkpoint(saved(tmp_path / "model.pt", content))
    assert list(read.state_dict) == list(Net().state_dict())
    assert read.hyperparameters == {"hidden": 8}
    assert read.notes[0] == f"the weights are under the key {key!r}"
    assert "epoch" in read.notes[1]


def test_nothing_or_too_much(tmp_path: Path) -> None:
    state = Net().state_dict()
    several = saved(tmp_path / "a.pt", {"generator": state, "discriminator": state})
    refused(several, "holds several state_dicts (discriminator, generator)", "save the wanted weights alone")
    refused(saved(tmp_path / "b.pt", {"epoch": 3}), "holds no tensors under epoch", "save the wanted weights alone")
    refused(saved(tmp_path / "c.pt", {}), "holds no tensors under any key")
    refused(saved(tmp_path / "d.pt", torch.ones(3)), "holds one Tensor, not a state_dict")
    refused(saved(tmp_path / "e.pt", {"w": torch.ones(3), "sub": state}), "mixes tensors with state_dicts (sub)")
    refused(saved(tmp_path / "f.pt", {3: torch.ones(3)}), "has the key 3 among its weights, which is not text")
    refused(saved(tmp_path / "g.ckpt", {"state_dict": {}, "hyper_parameters": {}}), "'state_dict' holds no tensors")


def test_entries_that_are_no_tensors(tmp_path: Path) -> None:
    content = collections.OrderedDict(w=torch.ones(1), epoch=3)
    content["bn._extra_state"] = {"a": 1}
    read = read_checkpoint(saved(tmp_path / "model.pt", content))
    assert list(read.state_dict) == ["w", "bn._extra_state"]
    assert read.notes == ("entries that are no tensors are not used: epoch",)


def test_lightning_cli_hyperparameters(tmp_path: Path) -> None:
    values = {
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        "_class_path": "a.B",
        "init_args": {"hidden": 4},
    }
    read = read_checkpoint(saved(tmp_path / "a.ckpt", {"state_dict": Net().state_dict(), "hyper_parameters": values}))
    assert read.kind == "lightning"
    assert read.hyperparameters == {"hidden": 4}
    assert "LightningCLI made the module as a.B" in read.notes


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    net = Net()
    path = tmp_path / "model.safetensors"
    save_file(net.state_dict(), path)
    read = read_checkpoint(path)
    assert read.kind == "safetensors"
    assert torch.equal(read.state_dict["net.0.bias"], net.net[0].bias)
    (tmp_path / "renamed.bin").write_bytes(path.read_bytes())
    assert read_checkpoint(tmp_path / "renamed.bin").kind == "safetensors"
    for length in (9, 100, path.stat().st_size - 1):
        (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:length])
        refused(tmp_path / "cut.safetensors", "is a damaged or cut short safetensors file", "copy or download it again")
    saved(tmp_path / "torch.safetensors", net.state_dict())
    refused(tmp_path / "torch.safetensors", "is named .safetensors but torch.save wrote it", "rename it to .pt")


def test_safetensors_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'deploykit\[safetensors\]'"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_weights_are_not_copied_and_the_file_stays(tmp_path: Path) -> None:
    """Tensors are mapped from the file; writing to one leaves the file as it is."""
    path = saved(tmp_path / "model.pt", {"w": torch.zeros(1000)})
    before = path.read_bytes()
    read_checkpoint(path).state_dict["w"].add_(1)
    assert path.read_bytes() == before
    assert zipfile.ZipFile(path).testzip() is None
