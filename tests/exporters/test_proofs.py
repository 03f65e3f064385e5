"""Comparisons of sizes: plain numbers are the oracle of what is said to hold for all of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, statically_known_true

from exporters.capture.proofs import proven_sizes
from exporters.export import export_module

Compared = Callable[[Any], Any]

ALWAYS: dict[str, Compared] = {
    "up within kept": lambda n: 2 * (n // 2) <= n,
    "up within kept, deeper": lambda n: 2 * (n // 8) <= n // 4,
    "up by strides": lambda n: 2 * ((n - 1) // 2 + 1) >= n,
    "up by strides, deeper": lambda n: 2 * ((n - 1) // 4 + 1) >= (n - 1) // 2 + 1,
    "a rest": lambda n: n % 5 < 5,
    "the middle": lambda n: (n - 2 * (n // 2)) // 2 + 2 * (n // 2) <= n,
    "last window of a pooling": lambda n: 2 * (n // 2) < n + 1,
    "padded to multiples": lambda n: 2 * ((n + -n % 8) // 2) == n + -n % 8,
    "padded to multiples, twice": lambda n: (n + (8 - n % 8) % 8) // 8 * 8 >= n,
    "rounded up": lambda n: (n + 7) // 8 * 8 >= n,
    "other sizes": lambda n: 2 * (n // 2) != n + 1,
}
SOMETIMES: dict[str, Compared] = {
    "even ones": lambda n: 2 * (n // 2) == n,
    "all but multiples": lambda n: 4 * (n // 4) < n,
    "pairs that are whole": lambda n: 2 * (n // 4) == n // 2,
    "a window of one": lambda n: 3 * ((n + 1) // 3) < n + 1,
    "from seven on": lambda n: n // 7 >= 1,
    "at most a hundred": lambda n: n - n // 2 <= 50,
    "half a quotient": lambda n: (n // 2) * 0.5 >= 1,
}
SIZES = range(2, 400)


def size() -> Any:
    """One that torch knows to be 2 or more, as of a dynamic dimension at export."""
    environment, source = ShapeEnv(), ConstantSource("n")
    symbol = environment.create_symbol(12, source=source, dynamic_dim=DimDynamic.DYNAMIC)
    return environment.create_symintnode(symbol, hint=12, source=source)


@pytest.mark.parametrize("name", ALWAYS)
def test_what_holds_for_all_sizes_is_known(name: str) -> None:
    assert all(ALWAYS[name](number) for number in SIZES)
    with proven_sizes():
        assert statically_known_true(ALWAYS[name](size()))
        assert not statically_known_true(torch.sym_not(ALWAYS[name](size())))


@pytest.mark.parametrize("name", SOMETIMES)
def test_what_holds_for_some_sizes_is_left_open(name: str) -> None:
    assert {bool(SOMETIMES[name](number)) for number in SIZES} == {True, False}
    with proven_sizes():
        assert not statically_known_true(SOMETIMES[name](size()))
        assert not statically_known_true(torch.sym_not(SOMETIMES[name](size())))


class Halving(nn.Module):
    """Half of the size and back, and what was kept beside it, cut or not."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.first, self.inner, self.drop = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Dropout2d(0.3)
        self.up, self.last, self.cut = nn.ConvTranspose2d(3, 3, 2, 2), nn.Conv2d(6, 2, 1), cut

    def forward(self, image: Tensor) -> Tensor:
        kept = self.first(image)
        up = self.up(self.drop(self.inner(F.max_pool2d(kept, 2))))
        kept = kept[:, :, : up.shape[2]].narrow(3, 0, up.shape[3]) if self.cut else kept
        found: Tensor = self.last(torch.cat([kept, up], 1))
        return found


class Cuts(nn.Module):
    """U-Nets that cut what they kept, or pad what they get; and a convolution that sees no step ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.cutting, self.whole = Halving(cut=True), Halving(cut=False)
        self.causal, self.drop = nn.Conv1d(1, 2, 3, padding=4, dilation=2), nn.Dropout(0.3)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        height, width = image.shape[2:]
        padded = F.pad(image, (0, -width % 4, 0, (4 - height % 4) % 4))
        line = image.mean(2)
        return {
            "cut": self.cutting(image),
            "padded": self.whole(padded)[..., :height, :width],
            "causal": self.drop(self.causal(line)[..., : line.shape[-1]]),
        }


def test_a_cut_to_a_computed_size_keeps_sizes_dynamic(tmp_path: Path) -> None:
    """Both formats are compared with the module at sizes that are even and odd."""
    torch.manual_seed(0)
    result = export_module(Cuts(), tmp_path / "a", inputs=["image:float32[batch,1,height,width]"], mc_draws=3)
    monte_carlo = result.manifest.monte_carlo
    assert result.manifest.tested["height"] == result.manifest.tested["width"] == (9, 12, 17)
    assert monte_carlo is not None
    assert (monte_carlo.form, monte_carlo.form_reason) == ("batched", None)
    assert {record.format for record in result.manifest.parity} == {"onnx", "torchscript"}
