"""What must hold on a CUDA device, in both runtimes: the same masks bit for bit, and the same predictions."""

from pathlib import Path

import numpy as np
import pytest

import deploykit
from deploykit import masks

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dropout of ones, plain and by channel, and a small network behind it."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.channels = nn.Dropout(0.3), nn.Dropout2d(0.6)
            self.head = nn.Sequential(nn.Linear(257, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            dropped = self.drop(x)
            channels = self.channels(torch.ones_like(x)[:, :, None, None].expand(-1, -1, 2, 3))
            return {"mask": self.drop(torch.ones_like(x)), "channels": channels, "logits": self.head(dropped)}

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("gpu") / "model"
    return deploykit.export(Net(), path, inputs=["x:float32[batch,257]"], mc_draws=6, keep_draws=True).path


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_the_golden_outputs_come_out_on_the_gpu(runner: str, artifact: Path) -> None:
    found = deploykit.verify(artifact, format={"onnx": "onnx", "torch": "torchscript"}[runner], device="cuda:0")
    assert isinstance(found, list)
    assert [each.device for each in found] == ["cuda:0"]


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_masks_on_the_gpu_are_bit_for_bit_those_of_numpy(runner: str, artifact: Path) -> None:
    ids = np.array([0, 5, 2**61, -3], np.int64)
    x = np.random.default_rng(0).standard_normal((4, 257)).astype(np.float32)
    with deploykit.load(artifact, runner=runner, device="cuda:0") as model:
        sites = model.artifact.manifest.monte_carlo.sites
        got = model.predict({"x": x}, sample_ids=ids, seed=-9, first_draw=3, draws=5)
    (of_channels,) = (site.index for site in sites if site.module == "channels")
    channels = masks.keep_mask(-9, of_channels, ids, range(3, 8), 257, 0.6)
    kept = np.swapaxes(got["channels.draws"], 0, 1) != 0
    np.testing.assert_array_equal(kept, np.broadcast_to(channels[..., None, None], kept.shape))
    plain = [site.index for site in sites if site.module == "drop"][-1]
    wanted = masks.keep_mask(-9, plain, ids, range(3, 8), 257, 0.3)
    np.testing.assert_array_equal(np.swapaxes(got["mask.draws"], 0, 1) != 0, wanted)


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_a_run_on_the_gpu_equals_one_on_the_cpu(runner: str, artifact: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((1000, 257)).astype(np.float32))
    merged = {}
    for device in ("cpu", "cuda:0"):
        out = tmp_path / device.replace(":", "-")
        deploykit.run(artifact, tmp_path / "rows.npy", out, runner=runner, devices=device, batch_size=64)
        with np.load(deploykit.merge(out, tmp_path / f"{out.name}.npz")) as data:
            merged[device] = {name: data[name] for name in data.files}
    for name, wanted in merged["cpu"].items():
        scale = float(np.abs(wanted).max())
        np.testing.assert_allclose(merged["cuda:0"][name], wanted, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_two_runs_on_the_gpu_write_the_same_bytes(runner: str, artifact: Path, tmp_path: Path) -> None:
    """Two batches are in work at a time, and which one a stream gets is left to chance."""
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).standard_normal((5000, 257)).astype(np.float32))
    parts = []
    for name in ("a", "b"):
        deploykit.run(
            artifact, tmp_path / "rows.npy", tmp_path / name, runner=runner, devices="cuda:0", batch_size=32,
            shard_rows=640,
        )  # fmt: skip
        parts.append({part.name: part.read_bytes() for part in (tmp_path / name / "parts").iterdir()})
    assert len(parts[0]) == 8
    assert parts[0] == parts[1]
