"""Activations that have a translation of their own: right in every dtype, and in the form that ONNX Runtime fuses."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from exporters.export import export_module

TOLERANCE = {torch.float16: 2e-3, torch.float32: 2e-6, torch.float64: 1e-12}


@pytest.mark.parametrize(
    ("approximate", "dtype"),
    # ONNX Runtime has no error function in float64.
    [("none", torch.float16), ("none", torch.float32), *(("tanh", dtype) for dtype in TOLERANCE)],
)
def test_gelu_is_that_of_torch(approximate, dtype, tmp_path):
    module = nn.GELU(approximate=approximate)
    name = str(dtype).removeprefix("torch.")
    artifact = export_module(module, tmp_path / "a", inputs=[f"x:{name}[batch,64]"], formats=["onnx"]).path
    x = torch.linspace(-6, 6, 192, dtype=torch.float64).reshape(3, 64)
    session = onnxruntime.InferenceSession(artifact / "model.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": x.to(dtype).numpy()})
    want = module(x.to(dtype).double()).numpy()
    assert got.dtype == x.to(dtype).numpy().dtype
    assert np.abs(got - want).max() <= TOLERANCE[dtype] * 6


@pytest.mark.parametrize(("approximate", "fused"), [("none", "Gelu"), ("tanh", "FastGelu")])
def test_gelu_becomes_one_kernel(approximate, fused, tmp_path):
    module = nn.Sequential(nn.GELU(approximate=approximate), nn.Dropout(0.5))
    artifact = export_module(
        module, tmp_path / "a", inputs=["x:float32[batch,64]"], formats=["onnx"], mc_draws=4
    ).path  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(artifact / "model.onnx", options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert fused in kinds
    assert not {"Erf", "Tanh"} & set(kinds)
