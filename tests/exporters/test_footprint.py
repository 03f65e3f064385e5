"""The memory of one row in one draw, for modules whose activations can be counted by hand."""

import pytest
import torch
from torch import Tensor, nn

from exporters.export import export_module
from exporters.inputs import DEFAULT_SIZE

HIDDEN = 64


class Wide(nn.Module):
    """What is before the dropout runs once and counts nothing, however large; the view after it is free."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(4, 10 * hidden)
        self.down = nn.Linear(10 * hidden, hidden)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.drop(self.down(self.up(x).relu()))
        return self.head(hidden.reshape(-1, 2, hidden.shape[1] // 2).flatten(1))


def row_bytes(module: nn.Module, path: object, spec: str) -> int:
    torch.manual_seed(0)
    section = export_module(module, f"{path}", inputs=[spec], mc_draws=4, formats=["torchscript"]).manifest.monte_carlo
    assert section is not None
    assert section.row_bytes is not None
    return section.row_bytes


def test_only_what_every_draw_holds_counts(tmp_path: object) -> None:
    found = row_bytes(Wide(HIDDEN), f"{tmp_path}/a", "x:float32[batch,4]")
    # At a site, the values or their copies, the word and the mask: between two and five tensors of 4 bytes.
    assert 2 * 4 * HIDDEN <= found <= 5 * 4 * HIDDEN
    assert row_bytes(Wide(2 * HIDDEN), f"{tmp_path}/b", "x:float32[batch,4]") == pytest.approx(2 * found, rel=0.1)


def test_another_dynamic_dimension_counts_with_its_size_at_the_export(tmp_path: object) -> None:
    module = nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.5), nn.Linear(32, 4))
    fixed = row_bytes(module, f"{tmp_path}/a", "x:float32[batch,4,4]")
    free = row_bytes(module, f"{tmp_path}/b", "x:float32[batch,seq,4]")
    assert free == pytest.approx(fixed * DEFAULT_SIZE / 4, rel=0.02)


def test_arithmetic_before_the_first_dropout_is_counted_once(tmp_path: object) -> None:
    section = export_module(
        Wide(HIDDEN), f"{tmp_path}/a", inputs=["x:float32[batch,4]"], mc_draws=4, formats=["torchscript"]
    ).manifest.monte_carlo
    assert section is not None
    once, draw = 4 * 10 * HIDDEN + 10 * HIDDEN * HIDDEN, HIDDEN * 2
    assert section.once_over_draw == pytest.approx(once / draw)


def test_what_torch_does_not_count_is_not_known(tmp_path: object) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.drop, self.head = nn.LSTM(4, 8, batch_first=True), nn.Dropout(0.5), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.drop(self.body(x)[0]))
            return found

    section = export_module(
        Recurrent(), f"{tmp_path}/a", inputs=["x:float32[batch,3,4]"], mc_draws=4, formats=["torchscript"]
    ).manifest.monte_carlo
    assert section is not None
    assert section.once_over_draw is None
