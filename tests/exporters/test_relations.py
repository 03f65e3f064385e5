"""Code that compares several dynamic sizes: the graph has one way, and torch says nothing of the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploykit.errors import ExportError
from exporters.export import ExportResult, export_module
from runners.predict import load

SPECS = ["x:float32[batch,a,4]", "y:float32[batch,b,4]"]
SIZES = [(12, 12), (20, 5), (5, 20), (6, 3), (24, 12), (13, 12), (2, 3)]


class Pair(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.body = function, nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(self.body(x), y)


def exported(function: Callable[..., Tensor], path: Path, **options: Any) -> ExportResult:
    return export_module(Pair(function).eval(), path, inputs=SPECS, **options)


def shorter(h: Tensor, y: Tensor) -> Tensor:
    return h.mean(1) if h.shape[1] > y.shape[1] else h.mean(1) + y.mean(1)


def twice(h: Tensor, y: Tensor) -> Tensor:
    return h.mean(1) if h.shape[1] == 2 * y.shape[1] else h.mean(1) + y.mean(1)


def square(h: Tensor, y: Tensor) -> Tensor:
    return h.mean(1) if h.shape[0] == y.shape[1] else h.mean(1) + y.mean(1)


def far(h: Tensor, y: Tensor) -> Tensor:
    return h.mean(1) if h.shape[1] * y.shape[1] > 4000 else h.mean(1) + y.mean(1)


def many(h: Tensor, y: Tensor) -> Tensor:
    return h.mean(1) if h.numel() > 4096 else h.mean(1) + y.mean(1)


def nested(h: Tensor, y: Tensor) -> Tensor:
    """Where the first condition does not hold the file is right as long as the second does not."""
    if h.shape[1] > y.shape[1] and h.shape[1] > 3 * y.shape[1]:
        return h.mean(1)
    return h.mean(1) + y.mean(1)


def drawing(h: Tensor, y: Tensor) -> Tensor:
    p = 0.5 if h.shape[1] > y.shape[1] else 0.1
    return nn.functional.dropout(h, p, True).mean(1)


def compared(h: Tensor, y: Tensor) -> Tensor:
    return h.mean(1) if h.shape[1] == y.shape[1] else h.mean(1) + y.mean(1)


@pytest.mark.parametrize(
    ("function", "words", "draws"),
    [
        (shorter, "a <= b", None),
        (shorter, "a <= b", 3),
        (twice, r"a != 2\*b", None),
        (square, "b != batch|batch != b", None),
        (far, r"a\*b <= 4000", None),
        (many, r"4\*a\*batch <= 4096", None),
        (nested, "a <= b", None),
        (drawing, "a <= b", 3),
    ],
)
def test_a_way_that_the_example_did_not_go_is_refused(
    tmp_path: Path, function: Callable[..., Tensor], words: str, draws: int | None
) -> None:
    line = r"\(test_relations.py:\d+: (return|if|p =) .*\)"
    words = rf"^\(root\) {line}: .* goes another way where ({words}) does not hold, as at .*: write it"
    with pytest.raises(ExportError, match=words):
        exported(function, tmp_path / "a", mc_draws=draws, formats=["torchscript"])
    assert not (tmp_path / "a").exists()


def test_dimensions_that_the_code_wants_alike_may_have_an_example_where_they_are_not(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="an --example in which they have different sizes if the code only compares"):
        exported(compared, tmp_path / "a", formats=["torchscript"])
    apart = {"x": np.zeros((2, 9, 4), np.float32), "y": np.zeros((2, 7, 4), np.float32)}
    with pytest.raises(ExportError, match=r"goes another way where a != b does not hold, as at {'a': 8, 'b': 8}"):
        exported(compared, tmp_path / "a", formats=["torchscript"], example=apart)


def test_ranges_may_hold_nothing_at_some_sizes(tmp_path: Path) -> None:
    """No rows have such sizes, so that the module need not take them."""

    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 4)

        def forward(self, places: Tensor, y: Tensor) -> Tensor:
            h = self.table(places).mean(1)
            return h if places.shape[1] > y.shape[1] else h + y.mean(1)

    inputs = ["places:int64[batch,a]", "y:float32[batch,b,4]"]
    with pytest.raises(ExportError, match=r"goes another way where a <= b does not hold, as at {'a': 13, 'b': 12}"):
        export_module(Looked().eval(), tmp_path / "a", inputs=inputs, ranges={"places": (10, "a-1")})


def test_sizes_that_have_to_be_the_same_are_told_to_have_one_name(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="works only where a and b are the same; give both one name if they always"):
        exported(lambda h, y: (h + y).mean(1), tmp_path / "a")
    one = [spec.replace("[batch,b", "[batch,a") for spec in SPECS]
    module = Pair(lambda h, y: (h + y).mean(1)).eval()
    assert export_module(module, tmp_path / "b", inputs=one).max_error < 1e-5


def cut(h: Tensor, y: Tensor) -> Tensor:
    return h[:, : y.shape[1]].mean(1)


def attended(h: Tensor, y: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(h, y, y).mean(1)


def cropped(h: Tensor, y: Tensor) -> Tensor:
    """To the shorter of two: the file knows that one is it only where both have one size in the example."""
    n = min(h.shape[1], y.shape[1])
    return (h[:, :n] + y[:, :n]).mean(1)


def left(h: Tensor, y: Tensor) -> Tensor:
    """Nothing is left where ``y`` is as long."""
    return h[:, y.shape[1] :].sum(1)


def single(h: Tensor, y: Tensor) -> Tensor:
    """Both ways are the same."""
    return h.mean(1) + y.mean(1) if h.shape[1] == y.shape[1] + 1 == 2 else h.mean(1) + y.sum(1) / y.shape[1]


def refusing(h: Tensor, y: Tensor) -> Tensor:
    if h.shape[1] < y.shape[1]:
        raise ValueError("y is longer")
    return h.mean(1) + y.mean(1)


@pytest.mark.parametrize("function", [cut, attended, cropped, left, single, refusing])
def test_what_holds_for_all_sizes_that_the_module_takes_is_exported(
    tmp_path: Path, function: Callable[..., Tensor]
) -> None:
    module = Pair(function).eval()
    result = export_module(module, tmp_path / "a", inputs=SPECS)
    assert result.manifest.bounds == {}
    generator = torch.Generator().manual_seed(1)
    for runner in ("onnx", "torch"):
        with load(tmp_path / "a", runner=runner) as model:
            for a, b in SIZES:
                if function is refusing and a < b:
                    continue
                x, y = (torch.randn(3, size, 4, generator=generator) for size in (a, b))
                found = model.predict({"x": x.numpy(), "y": y.numpy()})["output"]
                np.testing.assert_allclose(found, module(x, y).detach().numpy(), atol=1e-5)
