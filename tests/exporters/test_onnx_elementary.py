"""Functions that ONNX lacks, at the edges of what they are made of; eager PyTorch is the oracle."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exporters.export import export_module
from runners.predict import load

EDGES = np.array(
    [0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-30, -1e-30, 1e30, -1e30, 3e38, 1e-7, -1e-7, -0.5, -0.999999, 0.3],
    np.float32,
)


class Functions(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {
            "angle": torch.atan2(x, y),
            "half": torch.atan2(x.half(), y.half()).float(),
            "of_complex": torch.angle(torch.complex(y, x)),
            "log1p": torch.log1p(x),
            "expm1": torch.expm1(x),
        }


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    inputs = ["x:float32[batch]", "y:float32[batch]"]
    return export_module(Functions(), tmp_path_factory.mktemp("a") / "a", inputs=inputs, tolerance=0.01).path


def test_what_onnx_lacks_is_torchs_at_zeros_infinities_and_nan(artifact: Path) -> None:
    x, y = (each.ravel().copy() for each in np.meshgrid(EDGES, EDGES))
    wanted = Functions()(torch.from_numpy(x), torch.from_numpy(y))
    with load(artifact, runner="onnx") as model:
        found = model.predict({"x": x, "y": y})
    for name, values in wanted.items():
        rtol = 2e-3 if name == "half" else 3e-6
        np.testing.assert_allclose(found[name], values, rtol=rtol, atol=1e-37, err_msg=name)


def test_small_numbers_keep_their_digits(artifact: Path) -> None:
    x = np.geomspace(1e-12, 1, 200, dtype=np.float32)
    with load(artifact, runner="onnx") as model:
        found = model.predict({"x": x, "y": x})
    np.testing.assert_allclose(found["log1p"], np.log1p(x), rtol=5e-7)
    np.testing.assert_allclose(found["expm1"], np.expm1(x), rtol=5e-7)
