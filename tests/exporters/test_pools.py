"""Poolings over a dynamic number of steps: an export compares with eager PyTorch at several sizes."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from exporters.export import export_module


class ByName(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.max_pool1d(x, kernel_size=2, padding=1)


STEPS = [
    ByName(), nn.MaxPool1d(3, 1, 1), nn.MaxPool1d(2), nn.MaxPool1d(3, 2, 1), nn.MaxPool1d(2, 1, dilation=2),
    nn.MaxPool1d((3,), (2,), (1,)), nn.MaxPool1d(2, ceil_mode=True), nn.MaxPool1d(3, 2, 1, ceil_mode=True),
    nn.AvgPool1d(2, ceil_mode=True), nn.AvgPool1d(3, 2, 1, ceil_mode=True),
]  # fmt: skip


class Convolved(nn.Module):
    """As networks over time series and texts are; each pooling on what the dropout leaves."""

    def __init__(self, pools: list[nn.Module], features: int) -> None:
        super().__init__()
        self.first, self.drop = nn.Conv1d(4, 6, 3, padding=1), nn.Dropout(0.3)
        self.pools, self.head = nn.ModuleList(pools), nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.first(x))
        found: Tensor = self.head(torch.cat([pool(x).mean(-1) for pool in self.pools], 1))
        return found


@pytest.mark.parametrize("draws", [None, 3])
def test_largest_of_a_dynamic_number_of_steps(draws: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Convolved(STEPS, 6 * len(STEPS))
    result = export_module(module, tmp_path / "a", inputs=["x:float32[batch,4,steps]"], mc_draws=draws)
    assert result.manifest.tested["steps"] == (9, 12, 17)
    assert result.manifest.bounds.get("steps", {}).get("max") is None
    assert result.manifest.formats["onnx"].minimum_runtime == "onnxruntime 1.29", "one of the averages has padding"


class Pyramid(nn.Module):
    """As networks that segment or classify images of any size are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Dropout2d(0.3), nn.Linear(4 * 74, 3)
        averages = [nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d((7, 3))]
        self.pools = nn.ModuleList([*averages, nn.AdaptiveMaxPool2d((5, 6)), nn.Upsample((2, 3), mode="area")])
        self.lines = nn.ModuleList([nn.AdaptiveAvgPool1d(5), nn.AdaptiveMaxPool1d(7)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.first(x))
        parts = [*(pool(x) for pool in self.pools), *(pool(x.flatten(2)) for pool in self.lines)]
        found: Tensor = self.head(torch.cat([part.flatten(1) for part in parts], 1))
        return found


def test_parts_of_a_dynamic_size(tmp_path: Path) -> None:
    """Sizes of 17 and 9 are no multiples of the parts, and less than some are."""
    torch.manual_seed(0)
    result = export_module(Pyramid(), tmp_path / "a", inputs=["x:float32[batch,3,height,width]"], mc_draws=3)
    assert result.manifest.tested["height"] == (9, 12, 17)
    assert result.manifest.bounds == {}


class Beyond(nn.Module):
    """Averages whose last window reaches beyond the input; torch does not count what is there."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {
            "plane": F.avg_pool2d(x, 3, 2, ceil_mode=True).mean((2, 3)),
            "wide": F.avg_pool2d(x, (2, 5), (2, 3), (0, 2), ceil_mode=True, count_include_pad=False).mean((2, 3)),
            "space": F.avg_pool3d(x.unsqueeze(1), 2, ceil_mode=True).mean((2, 3, 4)),
            "padded": F.avg_pool2d(x, 3, 2, 1).mean((2, 3)),
        }


def test_averages_without_padding_run_on_old_versions_too(tmp_path: Path) -> None:
    """Which divide by what is beyond the input where padding counts: not here, where there is none."""
    result = export_module(Beyond(), tmp_path / "a", inputs=["x:float32[batch,3,height,width]"], formats=["onnx"])
    assert result.manifest.formats["onnx"].minimum_runtime == "onnxruntime 1.15"
