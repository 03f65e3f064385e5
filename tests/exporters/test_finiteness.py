"""Code that looks for numbers that are not finite: mended as the module mends them, or not asked for at all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import ExportError
from exporters.export import export_module
from tests.exporters.test_monte_carlo import clients, names_of


class Careful(nn.Module):
    """As an encoder layer of DETR, which looks in training mode only."""

    def __init__(self, mend: Callable[[Tensor], Tensor], always: bool) -> None:
        super().__init__()
        self.layer, self.drop, self.head = nn.Linear(6, 8), nn.Dropout(0.25), nn.Linear(8, 3)
        self.mend, self.always = mend, always

    def forward(self, x: Tensor) -> Tensor:
        x = self.mend(x) if self.always else x
        values = self.drop(self.layer(x))
        if self.training:
            values = self.mend(values)
        return self.head(values)


def clamp(x: Tensor) -> Tensor:
    if not torch.isfinite(x).all():
        limit = torch.finfo(x.dtype).max - 1000
        x = torch.clamp(x, min=-limit, max=limit)
    return x


def fill(x: Tensor) -> Tensor:
    if torch.isnan(x).any() or torch.any(torch.isinf(x)):
        x = torch.nan_to_num(x, nan=0.5, posinf=2.0, neginf=-2.0)
    return x


def fill_by_item(x: Tensor) -> Tensor:
    return torch.where(x.isnan(), 0.5, x) if (x.isnan() | x.isinf()).any().item() else x


def fill_unless(x: Tensor) -> Tensor:
    return x if (~x.isnan()).all() else torch.where(x.isnan(), 0.5, x)


def refuse(x: Tensor) -> Tensor:
    if torch.isnan(x).any():
        raise ValueError("no number")
    return x


def insist(x: Tensor) -> Tensor:
    assert torch.isfinite(x).all()
    return x


def start_again(x: Tensor) -> Tensor:
    return x if torch.isfinite(x).all() else torch.zeros_like(x)


@pytest.mark.parametrize("mend", [clamp, fill, fill_by_item, fill_unless])
@pytest.mark.parametrize("always", [False, True])
def test_numbers_are_mended_as_the_module_does(mend: Callable[[Tensor], Tensor], always: bool, tmp_path: Path) -> None:
    module = Careful(mend, always).eval()
    result = export_module(module, tmp_path / "a", inputs=["x:float32[batch,6]"], mc_draws=3, keep_draws=True)
    assert result.manifest.monte_carlo is not None
    assert [site.module for site in result.manifest.monte_carlo.sites] == ["drop"]
    deterministic = export_module(module, tmp_path / "b", inputs=["x:float32[batch,6]"])
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    if always and mend is not clamp:
        x[1, 2] = np.nan
    wanted = module(torch.from_numpy(x)).detach().numpy()
    assert np.isfinite(wanted).all()
    for client in clients(deterministic.path, names_of(deterministic)).values():
        np.testing.assert_allclose(client({"x": x})["output"], wanted, rtol=1e-5, atol=1e-6)
    for client in clients(result.path, names_of(result)).values():
        assert np.isfinite(client({"x": x})["output.draws"]).all()


@pytest.mark.parametrize("mend", [refuse, insist])
@pytest.mark.parametrize("draws", [None, 3])
def test_a_check_that_refuses_is_left_out(mend: Callable[[Tensor], Tensor], draws: int | None, tmp_path: Path) -> None:
    export_module(Careful(mend, always=True), tmp_path / "a", inputs=["x:float32[batch,6]"], mc_draws=draws)


def test_what_would_change_finite_numbers_too_is_refused(tmp_path: Path) -> None:
    module = Careful(start_again, always=True)
    with pytest.raises(ExportError):
        export_module(module, tmp_path / "a", inputs=["x:float32[batch,6]"], mc_draws=3)
    assert list(tmp_path.iterdir()) == []
