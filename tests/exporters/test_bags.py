"""``nn.EmbeddingBag`` of rows that are bags: eager PyTorch is the oracle of what is captured instead of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exporters.capture.bags import bags_of_rows
from exporters.export import export_module

NUMBERS = torch.tensor([[3, 1, 0, 0], [0, 0, 0, 0], [5, 5, 2, 0], [4, 6, 1, 2]])


@pytest.mark.parametrize(
    "options",
    [
        *({"mode": mode, "padding_idx": padding} for mode in ("mean", "sum", "max") for padding in (None, 0, -7)),
        {"mode": "sum", "weighted": True},
        {"mode": "sum", "weighted": True, "padding_idx": 0},
        {"mode": "sum", "max_norm": 0.5},
        {},
    ],
    ids=str,
)
def test_bags_are_those_of_torch(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    table, weights = torch.randn(7, 3), torch.randn(NUMBERS.shape)
    given = {**options, "per_sample_weights": weights} if options.pop("weighted", False) else options
    wanted = functional.embedding_bag(NUMBERS, table.clone(), **given)
    torch.testing.assert_close(bags_of_rows(functional.embedding_bag, NUMBERS, table.clone(), **given), wanted)


def test_bags_in_one_line_are_left_to_torch() -> None:
    table, begins = torch.randn(7, 3), torch.tensor([0, 1, 6])
    wanted = functional.embedding_bag(NUMBERS.flatten(), table, begins, mode="sum")
    torch.testing.assert_close(
        bags_of_rows(functional.embedding_bag, NUMBERS.flatten(), table, begins, mode="sum"), wanted
    )


class Sparse(nn.Module):
    """As recommenders are: bags of numbers with weights, and layers with dropouts on them."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.drop = nn.EmbeddingBag(7, 8, mode="sum", padding_idx=0), nn.Dropout(0.3)
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))

    def forward(self, numbers: Tensor, weights: Tensor) -> Tensor:
        found: Tensor = self.layers(self.bag(numbers, per_sample_weights=self.drop(weights)))
        return found


def test_bags_of_a_dynamic_number_export_with_draws(tmp_path: Path) -> None:
    """The export compares with the module draw by draw, in both formats and at several sizes."""
    torch.manual_seed(0)
    result = export_module(
        Sparse(), tmp_path / "a", inputs=["numbers:int64[batch,many]", "weights:float32[batch,many]"], mc_draws=3
    )
    monte_carlo = result.manifest.monte_carlo
    assert monte_carlo is not None
    assert (monte_carlo.form, [site.module for site in monte_carlo.sites]) == ("batched", ["drop", "layers.2"])
    assert {record.format for record in result.manifest.parity} == {"onnx", "torchscript"}
    (allowed,) = result.manifest.inputs[0].allowed
    assert (allowed.min, allowed.max, allowed.module) == (0, 6, "bag")
    assert np.isfinite(result.max_error)
