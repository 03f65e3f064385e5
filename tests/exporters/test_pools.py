"""Poolings over a dynamic number of steps: an export compares with eager PyTorch at several sizes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from exporters.export import export_module

STEPS = [
    nn.MaxPool1d(3, 1, 1), nn.MaxPool1d(2), nn.MaxPool1d(3, 2, 1), nn.MaxPool1d(2, 1, dilation=2),
    nn.MaxPool1d((3,), (2,), (1,)),
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
