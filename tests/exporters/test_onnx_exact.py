"""Small numbers stay in an ONNX file what they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exporters.export import export_module

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Careful(nn.Module):
    """Written so that a probability of zero and an empty row do no harm, as is often done."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        p = x.softmax(-1)
        return {
            "entropy": -(p * (p + 1e-9).log()),
            "unit": x / (x.norm(dim=-1, keepdim=True) + 1e-12),
            "apart": (x - 1e-9).abs().log(),
        }


def test_a_number_that_keeps_a_logarithm_finite_is_not_dropped(tmp_path: Path) -> None:
    """Random inputs never come near it, so that the comparison at export does not see it."""
    export_module(Careful().eval(), tmp_path / "a", inputs=["x:float32[batch,4]"], formats=["onnx"])
    x = np.array([[0, 0, 0, 0], [400, 0, -400, 1]], np.float32)
    session = ort.InferenceSession(str(tmp_path / "a" / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    got = dict(zip(names, session.run(names, {"x": x}), strict=True))
    for name, wanted in Careful()(torch.from_numpy(x)).items():
        assert np.isfinite(got[name]).all()
        np.testing.assert_allclose(got[name], wanted.numpy(), rtol=1e-4, atol=1e-6)
