"""Which modules draw: ``--mc-modules`` chooses, and the manifest says where."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deploykit.errors import ExportError, UsageError
from deploykit.manifest import Site
from exporters.export import export_module
from tests.exporters.test_monte_carlo import SPEC


class Block(nn.Module):
    """A Dropout of its own, a functional one, and a norm layer."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.linear, self.norm, self.drop, self.p = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(p), p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.drop(F.relu(self.norm(self.linear(x)))), self.p / 2, self.training)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(Block(0.2), Block(0.4))
        self.head = nn.Sequential(nn.Dropout(0.6), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def sites(tmp_path: Path, *patterns: str) -> list[Site]:
    torch.manual_seed(0)
    module = Net().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    result = export_module(
        module, tmp_path / "a", inputs=[SPEC], mc_draws=3, mc_modules=patterns, formats=["onnx"], keep_draws=True
    )
    assert all(child.training for child in module.modules()), "the module is given back as it was"
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert result.manifest.monte_carlo is not None
    return list(result.manifest.monte_carlo.sites)


@pytest.mark.parametrize(
    ("patterns", "modules"),
    [
        ([], ["encoder.0.drop", "encoder.0", "encoder.1.drop", "encoder.1", "head.0"]),
        (["head"], ["head.0"]),
        (["head.0", "encoder.1"], ["encoder.1.drop", "encoder.1", "head.0"]),
        (["*.drop"], ["encoder.0.drop", "encoder.1.drop"]),
        (["encoder.[0]"], ["encoder.0.drop", "encoder.0"]),
    ],
)
def test_the_modules_that_match_draw_and_no_others(patterns: list[str], modules: list[str], tmp_path: Path) -> None:
    assert [site.module for site in sites(tmp_path, *patterns)] == modules


def test_the_manifest_says_where_in_the_graph_a_site_is(tmp_path: Path) -> None:
    first, second, *_, last = sites(tmp_path)
    assert (first.position, first.feeds) == (4, ("dropout",)), "behind linear, batch_norm and relu"
    assert (second.position, second.feeds) == (5, ("linear",))
    assert (last.position, last.feeds) == (11, ("linear",))


def test_a_pattern_that_fits_no_site_is_refused_with_those_that_draw(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"like decoder; --mc-modules can choose among encoder.0.drop, encoder.0, e"):
        sites(tmp_path, "decoder")


def test_patterns_without_draws_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--mc-modules head: needs --mc-draws"):
        export_module(Net(), tmp_path / "a", inputs=[SPEC], mc_modules=["head"])


@pytest.mark.parametrize(
    ("options", "said"),
    [({"keep_draws": True}, "--keep-draws"), ({"mask_mode": "shared", "seed": 5}, "--mask-mode shared, --seed 5")],
)
def test_how_draws_are_made_is_refused_where_nothing_draws(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    """The file would be deterministic, and whoever asked for it would think that it draws."""
    with pytest.raises(UsageError, match=f"^{said}: the module draws nothing .* add --mc-draws"):
        export_module(Net(), tmp_path / "a", inputs=[SPEC], **options)
    assert list(tmp_path.iterdir()) == []


def test_what_draws_in_evaluation_mode_draws_in_any_case(tmp_path: Path) -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    result = export_module(
        Noisy(), tmp_path / "a", inputs=[SPEC], mc_draws=3, mc_modules=["head"], formats=["onnx"], keep_draws=True
    )
    assert result.manifest.monte_carlo is not None
    assert [site.kind for site in result.manifest.monte_carlo.sites] == ["normal", "dropout"]
    assert np.isfinite(result.max_error)
