"""Prediction in memory, and the replay of golden inputs."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import deploykit
from deploykit.artifact import MANIFEST_NAME
from deploykit.errors import ArtifactError, DataError, MissingExtraError, RunError, UsageError
from deploykit.manifest import FileRecord, Manifest
from deploykit.storage.files import sha256_of
from runners.onnx_runner import OnnxRunner
from runners.predict import load, verify_artifact
from runners.torch_runner import TorchRunner
from tests import handmade
from tests.exporters import models


@pytest.mark.parametrize("runner", ["onnx", "torch"])
@pytest.mark.parametrize("batch_size", [None, 1, 4, 100])
def test_batches_in_memory_change_nothing(artifact_paths: dict[str, Path], runner: str, batch_size: int | None) -> None:
    inputs = handmade.random_inputs("mc", 11)
    with load(artifact_paths["mc"], runner=runner) as model:
        found = model.predict(inputs["x"], batch_size=batch_size, seed=3)
        assert model.artifact.manifest.name == "mc"
    want = handmade.expected("mc", inputs, seed=3)
    assert list(found) == list(want)
    for name, array in found.items():
        np.testing.assert_allclose(array, want[name], rtol=1e-5, atol=1e-5)


def test_bad_requests_in_memory(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    x = np.ones((3, 4), np.float32)
    model = load(artifact_paths["plain"])
    assert list(model.predict(x)) == ["logits", "aux.norm"]
    for _ in range(2):
        model.close()
    with pytest.raises(UsageError, match="the model is closed"):
        model.predict(x)
    with pytest.raises(UsageError, match="the model is closed"), model:
        pass
    with pytest.raises(ArtifactError, match=r"nope"):
        load(tmp_path / "nope")
    with load(artifact_paths["pair"]) as model, pytest.raises(DataError, match="a dict with an array for each"):
        model.predict(x)
    with load(artifact_paths["mc"]) as model:
        with pytest.raises(UsageError, match="batch size 0"):
            model.predict(x, batch_size=0)
        with pytest.raises(DataError, match="sample_ids"):
            model.predict(x, sample_ids=[1])
    for kind in ("plain", "mc"):
        with load(artifact_paths[kind]) as model:
            for ids in (["a"] * 3, [0.5, 1.0, 2.0], [True] * 3, [[1], [2], [3]], "abc"):
                with pytest.raises(DataError, match=r"sample_ids: .*, expected one integer per row, int64\[3\]; give"):
                    model.predict(x, sample_ids=ids)
            assert len(next(iter(model.predict(x[:0], sample_ids=[]).values()))) == 0
    with load(artifact_paths["mc"]) as model:
        for control in ({"seed": 2**63}, {"draws": 2.5}, {"draws": True}, {"first_draw": 2**63 - 3}, {"seed": "1"}):
            with pytest.raises(UsageError, match=rf"{next(iter(control))} .*64-bit integer"):
                model.predict(x, **control)
        with pytest.raises(UsageError, match=r"seed 18446744073709551615: .* from -2\*\*63 to 2\*\*63 - 1"):
            model.predict(x, seed=2**64 - 1)
        with pytest.raises(UsageError, match=r"draws 1000001: at most 1,000,000 draws are possible.*; give fewer"):
            model.predict(x, draws=1_000_001)
    with pytest.raises(UsageError, match="names 2 devices"), load(artifact_paths["mc"], device="cpu:2"):
        pass


class Offset(nn.Module):
    """One table for two columns, as recommenders have it; what the columns may hold is no limit of a single input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 2)
        self.register_buffer("offsets", torch.tensor([0, 3]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table(x + self.offsets).sum(1)


def test_what_a_runtime_raises_is_told_in_a_line(tmp_path: Path) -> None:
    path = deploykit.export(Offset().eval(), tmp_path / "a", inputs=["x:int64[batch,2]"], ranges={"x": (0, 2)}).path
    for runner, what in (("onnx", "indices element out of data bounds"), ("torch", "index out of range in self")):
        with load(path, runner=runner) as model:
            with pytest.raises(RunError, match=rf"^artifact .*: the model failed with .*{what}.*; predict each row"):
                model.predict(np.array([[0, 1], [0, 7]]))
            assert model.predict(np.array([[0, 1]]))["output"].shape == (1, 2)


def test_rows_that_do_not_fit_into_memory(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(OnnxRunner, "_infer", full)
    with load(artifact, runner="onnx") as model, pytest.raises(RunError, match=r"of memory.*; give fewer rows at once"):
        model.predict(np.ones((3, 4), np.float32))
    with pytest.raises(RunError, match=r"of memory.*; give fewer rows at once"):
        verify_artifact(artifact, format="onnx")


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_a_model_that_another_thread_closes(
    artifact_paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    model = load(artifact_paths["mc"], runner=runner)
    kind = {"onnx": OnnxRunner, "torch": TorchRunner}[runner]
    infer = kind._infer

    def closing(self: Any, *arrays: Any) -> Any:
        model.close()
        return infer(self, *arrays)

    monkeypatch.setattr(kind, "_infer", closing)
    with pytest.raises(UsageError, match=r"^the model is closed, by close\(\)"):
        model.predict(np.ones((3, 4), np.float32))


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_one_model_serves_any_number_of_threads(artifact_paths: dict[str, Path], runner: str) -> None:
    requests = [(first, handmade.random_inputs("mc", first % 5 + 1)) for first in range(32)]
    with load(artifact_paths["mc"], runner=runner) as model, ThreadPoolExecutor(8) as threads:
        ids = [np.arange(first, first + len(inputs["x"])) for first, inputs in requests]
        calls = [
            threads.submit(model.predict, request[1], sample_ids=rows)
            for request, rows in zip(requests, ids, strict=True)
        ]
        found = [call.result() for call in calls]
    for (_, inputs), rows, outputs in zip(requests, ids, found, strict=True):
        want = handmade.expected("mc", inputs, sample_ids=rows)
        for name, array in outputs.items():
            np.testing.assert_allclose(array, want[name], rtol=1e-5, atol=1e-5)


def test_a_loaded_model_is_not_sent_to_another_process(artifact: Path) -> None:
    with load(artifact) as model, pytest.raises(UsageError, match=r"call deploykit.load\(...\) there"):
        pickle.dumps(model)


@pytest.mark.parametrize("kind", ["plain", "pair", "mc"])
def test_a_sound_artifact_verifies_in_both_formats(artifact_paths: dict[str, Path], kind: str) -> None:
    found = verify_artifact(artifact_paths[kind])
    assert [one.format for one in found] == ["onnx", "torchscript"]
    assert all(error <= 1e-5 for one in found for error in one.errors.values())
    assert [one.format for one in verify_artifact(artifact_paths[kind], format="torchscript")] == ["torchscript"]


def spoil(directory: Path, name: str, index: tuple[int, ...], value: float) -> None:
    """Change one golden output and make the digests fit again."""
    golden = dict(np.load(directory / "golden.npz"))
    golden[f"output.{name}"][index] = value
    np.savez(directory / "golden.npz", **golden)
    manifest = Manifest.from_json(json.loads((directory / MANIFEST_NAME).read_text()))
    path = directory / "golden.npz"
    record = FileRecord(sha256=sha256_of(path), size_bytes=path.stat().st_size)
    changed = replace(manifest, files={**manifest.files, "golden.npz": record})
    (directory / MANIFEST_NAME).write_text(json.dumps(changed.to_json()))


@pytest.mark.parametrize("value", [99.0, np.nan, np.inf])
def test_the_worst_element_is_named(tmp_path: Path, value: float) -> None:
    directory = handmade.build(tmp_path / "a", "mc", ["onnx"])
    spoil(directory, "logits.mean", (3, 1), value)
    with pytest.raises(ArtifactError) as caught:
        verify_artifact(directory)
    text = str(caught.value)
    for part in ("onnx", "logits.mean[3, 1]", f"expected {value:g}", "allowed is 1e-05", "export the model again"):
        assert part in text


def test_a_format_that_is_not_there(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    directory = handmade.build(tmp_path / "a", "plain", ["onnx"])
    with pytest.raises(ArtifactError, match="--format torchscript"):
        verify_artifact(directory, format="torchscript")


@pytest.mark.slow
def test_no_rows_of_a_recurrent_model(tmp_path: Path) -> None:
    """ONNX Runtime's LSTM ends the process when it gets a batch of none."""
    result = deploykit.export(
        models.Recurrent("LSTM").eval(), tmp_path / "a", inputs=["x:float32[batch,6]"], mc_draws=3
    )
    for runner in ("onnx", "torch"):
        with load(result.path, runner=runner) as model:
            one, none = (model.predict(np.ones((rows, 6), np.float32), seed=1, draws=2) for rows in (1, 0))
        assert list(none) == list(one)
        for name, array in none.items():
            assert array.dtype == one[name].dtype
            assert array.shape == one[name][:0].shape


def test_masked_values_are_refused_and_a_mask_of_nothing_is_none(artifact_paths: dict[str, Path]) -> None:
    x = np.ma.masked_array(np.ones((3, 4), np.float32), mask=False)
    with load(artifact_paths["plain"]) as model:
        assert model.predict(x).keys() == model.predict(x.filled(0)).keys()
        x[1, 2] = np.ma.masked
        for inputs in (x, {"x": x}):
            with pytest.raises(DataError, match=r"input 'x': 1 of 12 values are masked.*array\.filled\(value\)"):
                model.predict(inputs)


def test_a_host_without_a_runtime_is_told_of_each(artifact_paths: dict[str, Path], monkeypatch: Any) -> None:
    for kind, name in ((OnnxRunner, "onnxruntime"), (TorchRunner, "torch")):

        def missing(name: str = name) -> str:
            raise MissingExtraError(name, "cpu", "running it")

        monkeypatch.setattr(kind, "check_installed", missing)
    with pytest.raises(MissingExtraError, match=r"'(torch|onnxruntime)': .*; or, .*'(torch|onnxruntime)': ") as caught:
        verify_artifact(artifact_paths["mc"])
    assert all(f"'{name}'" in str(caught.value) for name in ("onnxruntime", "torch"))
