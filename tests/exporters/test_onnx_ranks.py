"""Ranks in ONNX: eager PyTorch says what they are, of equals, infinite values and what is no number too."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from exporters.export import export_module
from exporters.onnx_format.minimum import oldest_runtime

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Ranks(nn.Module):
    """Along a dynamic number of steps, and along a few columns of integers."""

    edges: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edges", torch.tensor([-1.5, -0.5, 0.0, 0.0, 0.5, 1.5]))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        largest, least = torch.cummax(x, 1), torch.cummin(x.unsqueeze(2), 1)
        counts = (x.nan_to_num(3.0, 4.0, -4.0) * 2).long()
        ordered = x.nan_to_num(9.0).sort(1).values
        return {
            "median": x.median(1).values,
            "median_kept": x.unsqueeze(1).median(2, keepdim=True).values,
            "third": x.kthvalue(3, 1).values,
            "third_kept": counts.kthvalue(3, 1, keepdim=True).values,
            "vote": counts.mode(1).values,
            "vote_kept": counts.unsqueeze(1).mode(2, keepdim=True).values,
            "largest": largest.values,
            "largest_at": largest.indices,
            "least": least.values,
            "least_at": least.indices,
            "largest_count": counts.cummax(1).values,
            "before": torch.searchsorted(self.edges, x),
            "until": torch.searchsorted(self.edges, x, right=True, out_int32=True),
            "within": torch.searchsorted(ordered, x, side="right"),
            "number": torch.searchsorted(self.edges, 0.0) + x[:, 0].isnan(),
            "bucket": torch.bucketize(x, self.edges, right=True),
        }


def test_ranks_are_those_of_torch(tmp_path: Path) -> None:
    module = Ranks().eval()
    export_module(module, tmp_path / "a", inputs=["x:float32[batch,steps]"], formats=["onnx"])
    session = ort.InferenceSession(str(tmp_path / "a" / "model.onnx"), providers=["CPUExecutionProvider"])
    x = np.array(
        [
            [1, 1, 0.5, 0.5, -2, 1],
            [0, -0.5, 0.5, 0, 1.5, -1.5],
            [np.inf, 3, -np.inf, np.inf, 3, 0],
            [2, np.nan, 5, 5, 0, -1],
            [np.nan, np.nan, 1, np.nan, np.inf, np.nan],
        ],
        np.float32,
    )
    names = [output.name for output in session.get_outputs()]
    wanted = module(torch.from_numpy(x))
    for name, got in zip(names, session.run(names, {"x": x}), strict=True):
        np.testing.assert_array_equal(got, wanted[name].numpy(), strict=True, err_msg=name)
    nodes = onnx.load(tmp_path / "a" / "model.onnx").graph.node
    steps = [attribute.g for node in nodes for attribute in node.attribute if attribute.g.node]
    outputs = [output.type.tensor_type for step in steps for output in step.output]
    assert len(outputs) == 3 * 4
    assert oldest_runtime(tmp_path / "a" / "model.onnx") == "onnxruntime 1.15"
    assert all(output.HasField("shape") for output in outputs), "onnxruntime 1.20 does not find them out"


class Narrow(nn.Module):
    """Booleans and small integers, and many boundaries."""

    edges: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edges", torch.linspace(-2, 2, 21).round(decimals=1).repeat_interleave(2)[:-1])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        small = (x * 3).to(torch.int8)
        return {
            "vote": (x > 0).mode(1).values,
            "any_so_far": (x > 0).cummax(1).values,
            "all_so_far": (x > 0).cummin(1).values,
            "all_until": (x > 0).cummin(1).indices,
            "least": small.cummin(1).values,
            "median": small.median(1).values,
            "most": small.unsqueeze(2).cummax(1).values,
            "before": torch.searchsorted(self.edges, x),
            "until": torch.bucketize(x, self.edges, right=True, out_int32=True),
        }


def test_ranks_of_narrow_types_and_among_many_boundaries(tmp_path: Path) -> None:
    module = Narrow().eval()
    export_module(module, tmp_path / "a", inputs=["x:float32[batch,steps]"], formats=["onnx"])
    session = ort.InferenceSession(str(tmp_path / "a" / "model.onnx"), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((40, 7)).astype(np.float32).round(1)
    x[0, :3] = np.inf, -np.inf, -0.0
    names = [output.name for output in session.get_outputs()]
    wanted = module(torch.from_numpy(x))
    for name, got in zip(names, session.run(names, {"x": x}), strict=True):
        np.testing.assert_array_equal(got, wanted[name].numpy(), strict=True, err_msg=name)


class Places(nn.Module):
    """Where values lie that are no numbers, and values of another type among whole numbers."""

    whole: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whole", torch.tensor([0, 1, 2]))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {
            "median": x.median(1).indices,
            "value": x.gather(1, x.mode(1, keepdim=True).indices),
            "among": torch.searchsorted(self.whole, x),
            "number": torch.searchsorted(self.whole, 0.5) + x[:, 0].isnan(),
            "bucket": torch.bucketize(0.5, self.whole) + x[:, 0].isnan(),
        }


def test_places_of_what_is_no_number_and_among_whole_numbers(tmp_path: Path) -> None:
    module = Places().eval()
    found = export_module(module, tmp_path / "a", inputs=["x:float32[batch,steps]"], formats=["onnx"])
    assert found.manifest.bounds == {"steps": {"min": 1}}, "torch has no median of nothing"
    session = ort.InferenceSession(str(tmp_path / "a" / "model.onnx"), providers=["CPUExecutionProvider"])
    x = np.array([[np.nan, 1, 2, 3], [np.nan] * 4, [0.5, np.nan, 2, 2], [3, 1.5, 1, 3]], np.float32)
    names = [output.name for output in session.get_outputs()]
    wanted = module(torch.from_numpy(x))
    for name, got in zip(names, session.run(names, {"x": x}), strict=True):
        np.testing.assert_array_equal(got, wanted[name].numpy(), strict=True, err_msg=name)


class Passes(nn.Module):
    """A loop over passes whose outputs are summed up by their ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.first(x))
        passes = torch.stack([self.last(F.dropout(hidden, 0.5, training=True)) for _ in range(5)])
        found = {
            "median": passes.median(0).values,
            "places": passes.median(0).indices,
            "second": passes.kthvalue(2, 0).values,
            "vote": passes.argmax(-1).mode(0).values,
            "so_far": passes.cummax(0).values.movedim(0, 1),
        }
        if torch.__version__.startswith("2.11."):  # Which cannot capture a quantile of dynamic sizes.
            return found
        quantiles = passes.quantile(torch.tensor([0.1, 0.5]), dim=0).movedim(0, 1)
        return {**found, "upper": passes.quantile(0.9, dim=0), "range": quantiles}


@pytest.mark.parametrize("draws", [None, 3])
def test_passes_are_summed_up_by_their_ranks(draws: int | None, tmp_path: Path) -> None:
    """The export compares both formats with the module draw by draw."""
    torch.manual_seed(0)
    tasks = ["places=none", "vote=none"] if draws else []
    result = export_module(
        Passes().eval(), tmp_path / "a", inputs=["x:float32[batch,6]"], mc_draws=draws, task=["raw", *tasks]
    )
    assert result.manifest.monte_carlo is not None
    assert result.manifest.monte_carlo.form == "batched"
    assert {record.format for record in result.manifest.parity} == {"onnx", "torchscript"}
