"""What a refusal of a size says to write instead exports."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deploykit.errors import ExportError
from exporters.export import export_module

INPUTS = ["x:float32[batch,steps,4]"]


class Sized(nn.Module):
    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute, self.body = compute, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self.body(x))


def padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 0, -x.shape[1] % 16))


def unflattened(x: Tensor) -> Tensor:
    return padded(x).unflatten(1, (-1, 16)).mean((1, 2))


def reshaped(x: Tensor) -> Tensor:
    return padded(x).reshape(x.shape[0], -1, 16, 4).mean((1, 2))


def in_fours(x: Tensor) -> Tensor:
    return x.unflatten(1, (-1, 4)).mean((1, 2))


def between(x: Tensor) -> Tensor:
    return x[:, 4 : x.shape[1] - 2].reshape(x.shape[0], -1).sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (unflattened, r"padded to a multiple of 16 is told apart by x\.reshape\(rows, -1, 16, features\)"),
        (in_fours, r"do it for every size, as F\.pad\(x, \(0, -n % 16\)\) does"),
        (between, r"cannot work out the sizes for which the code holds \(.*\); declare the dynamic dim"),
    ],
)
def test_a_size_that_is_refused_is_told_what_to_write(
    tmp_path: Path, compute: Callable[[Tensor], Tensor], words: str
) -> None:
    with pytest.raises(ExportError, match=words):
        export_module(Sized(compute).eval(), tmp_path / "a", inputs=INPUTS, formats=["torchscript"])


def test_what_is_padded_and_reshaped_is_exported(tmp_path: Path) -> None:
    result = export_module(Sized(reshaped).eval(), tmp_path / "a", inputs=INPUTS)
    assert result.manifest.bounds == {}
    assert result.max_error < 1e-5
