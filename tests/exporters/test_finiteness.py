"""Code that looks for numbers that are not finite: mended as the module mends them, or not asked for at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    if torch.isnan(x).any() | torch.any(torch.isinf(x)):
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


class Several(nn.Module):
    """Modules on the same rows, by the names of what mends their numbers."""

    def __init__(self, mends: list[Callable[[Tensor], Tensor]], always: bool) -> None:
        super().__init__()
        self.careful = nn.ModuleDict({mend.__name__: Careful(mend, always) for mend in mends})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: module(x) for name, module in self.careful.items()}


FILLING: list[Callable[[Tensor], Tensor]] = [fill, fill_by_item, fill_unless]


@pytest.mark.parametrize(
    ("mends", "always", "broken"),
    [([clamp, *FILLING], False, False), ([clamp], True, False), (FILLING, True, True)],
    ids=["in training", "always, clamped", "always, filled"],
)
def test_numbers_are_mended_as_the_module_does(
    mends: list[Callable[[Tensor], Tensor]], always: bool, broken: bool, tmp_path: Path
) -> None:
    module = Several(mends, always).eval()
    result = export_module(module, tmp_path / "a", inputs=["x:float32[batch,6]"], mc_draws=3, keep_draws=True)
    assert result.manifest.monte_carlo is not None
    names = [mend.__name__ for mend in mends]
    assert [site.module for site in result.manifest.monte_carlo.sites] == [f"careful.{name}.drop" for name in names]
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    if broken:
        x[1, 2] = np.nan
    for client in clients(result.path, names_of(result)).values():
        found = client({"x": x})
        assert all(np.isfinite(found[f"{name}.draws"]).all() for name in names)
    if not always:
        return  # In evaluation nothing is mended.
    deterministic = export_module(module, tmp_path / "b", inputs=["x:float32[batch,6]"])
    every = module(torch.from_numpy(x))
    for client in clients(deterministic.path, names_of(deterministic)).values():
        found = client({"x": x})
        for name in names:
            wanted = every[name].detach().numpy()
            assert np.isfinite(wanted).all()
            np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("mend", [refuse, insist])
@pytest.mark.parametrize("draws", [None, 3])
def test_a_check_that_refuses_is_left_out(mend: Callable[[Tensor], Tensor], draws: int | None, tmp_path: Path) -> None:
    module = Careful(mend, always=True)
    options: dict[str, Any] = {"mc_draws": draws, "formats": ["torchscript"]}
    result = export_module(module, tmp_path / "a", inputs=["x:float32[batch,6]"], **options)
    notes = [note for note in result.notes if "left out" in note]
    # In training mode the module asks at two lines.
    assert len(notes) == (1 if draws is None else 2)
    assert all("test_finiteness.py" in note and "not finite" in note for note in notes)


def test_of_a_check_and_a_mend_the_mend_is_kept(tmp_path: Path) -> None:
    def both(x: Tensor) -> Tensor:
        return refuse(fill_in_place(insist_on_width(x)))

    result = export_module(Careful(both, always=True).eval(), tmp_path / "a", inputs=["x:float32[batch,6]"])
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    x[1, 2] = np.nan
    for client in clients(result.path, names_of(result)).values():
        assert np.isfinite(client({"x": x})["output"]).all()


def insist_on_width(x: Tensor) -> Tensor:
    assert not torch.isinf(x).any()
    return x


def fill_in_place(x: Tensor) -> Tensor:
    x = x.clone()
    bad = torch.isnan(x)
    if bad.any():
        x[bad] = 0.5
    return x


def fill_by_rows(x: Tensor) -> Tensor:
    if torch.isnan(x).any():
        x = x.clone()
        for row, column in torch.isnan(x).nonzero():
            x[row, column] = 0.5
    return x


def narrow(x: Tensor) -> Tensor:
    return torch.nan_to_num(x).clamp(-10, 10) if not torch.isfinite(x).all() else x


def narrow_by_one_clamp(x: Tensor) -> Tensor:
    return x.clamp(-1e6, 1e6) if torch.isinf(x).any() else x


def joined_in_place(x: Tensor) -> Tensor:
    bad = torch.isnan(x)
    bad |= x.abs() > 20
    return torch.nan_to_num(x) * 0 if bad.any() else x


def joined_by_out(x: Tensor) -> Tensor:
    bad = torch.isnan(x)
    torch.logical_or(bad, x > 20, out=bad)
    return torch.where(bad, 0.0, x) if bad.any() else x


def set_item(x: Tensor) -> Tensor:
    bad = torch.isnan(x)
    bad[0, 0] = True
    return torch.where(bad, 0.0, x) if bad.any() else x


def written_through_a_view(x: Tensor) -> Tensor:
    bad = torch.isnan(x)
    bad.view(-1).logical_not_()
    return torch.where(bad, 0.0, x) if bad.any() else x


def subject_written(x: Tensor) -> Tensor:
    x = x.clone()
    bad = ~torch.isfinite(x)
    x.mul_(1e30)
    return torch.nan_to_num(x) if bad.any() else x


def subject_written_through_data(x: Tensor) -> Tensor:
    x = x.clone()
    bad = ~torch.isfinite(x)
    x.data.mul_(1e30)
    return torch.nan_to_num(x) if bad.any() else x


def more_than_asked_for(x: Tensor) -> Tensor:
    return torch.nan_to_num(x) if torch.isnan(x).any() else x


def another(x: Tensor) -> Tensor:
    y = x / 3
    return torch.nan_to_num(y) if not torch.isfinite(x).all() else y


def otherwise(x: Tensor) -> Tensor:
    if torch.isinf(x).any():
        return torch.nan_to_num(x, nan=torch.nan)
    return x + 3 if torch.isnan(x).any() else x


def fill_by_or(x: Tensor) -> Tensor:
    return torch.nan_to_num(x) if torch.isnan(x).any() or torch.isinf(x).any() else x


def other_constant(x: Tensor) -> Tensor:
    return torch.nan_to_num(x) + torch.tensor([1.0]) if not torch.isfinite(x).all() else x + torch.tensor([2.0])


def other_scale(x: Tensor) -> Tensor:
    return torch.nan_to_num(x) * 2 if not torch.isfinite(x).all() else x


def two_answers(x: Tensor) -> Tensor:
    nan, infinite = bool(torch.isnan(x).any()), bool(torch.isinf(x).any())
    return x * 2 if nan != infinite else x


def again_and_again(x: Tensor) -> Tensor:
    while not torch.isfinite(x).all():
        x = x * 0.5
    return x


def mended_again_and_again(x: Tensor) -> Tensor:
    while not torch.isfinite(x).all():
        x = torch.nan_to_num(x)
    return x


@pytest.mark.parametrize(
    "mend",
    [
        fill_by_rows, narrow, narrow_by_one_clamp, joined_in_place, joined_by_out, set_item,
        written_through_a_view, subject_written, subject_written_through_data, more_than_asked_for, another,
        otherwise, fill_by_or, other_constant, other_scale, two_answers, again_and_again,
        mended_again_and_again,
    ],
)  # fmt: skip
def test_what_is_no_mend_of_what_was_asked_for_is_refused(mend: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"test_finiteness\.py"):
        export_module(Careful(mend, always=True), tmp_path / "a", inputs=["x:float32[batch,6]"])
    assert list(tmp_path.iterdir()) == []


def test_what_would_change_finite_numbers_too_is_refused(tmp_path: Path) -> None:
    module = Careful(start_again, always=True)
    with pytest.raises(ExportError):
        export_module(module, tmp_path / "a", inputs=["x:float32[batch,6]"], mc_draws=3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale", [1e2, 1e8, 1e30])
def test_large_finite_numbers_are_left_alone_and_each_layer_mends_its_own(scale: float, tmp_path: Path) -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)
            self.register_buffer("means", torch.arange(6.0))

        def forward(self, x: Tensor) -> Tensor:
            if torch.isnan(x).any():
                x = torch.where(torch.isnan(x), self.means, x)
            return self.second(clamp(self.first(x)))

    module = Layers().eval()
    result = export_module(module, tmp_path / "a", inputs=["x:float32[batch,6]"])
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32) * np.float32(scale)
    x[2, 1] = np.nan
    wanted = module(torch.from_numpy(x)).detach().numpy()
    assert np.isfinite(wanted).all()
    for client in clients(result.path, names_of(result)).values():
        error = np.abs(client({"x": x})["output"] - wanted) / np.abs(wanted).max()
        assert error.max() < 1e-5
