"""Modules that an export once got wrong or refused without reason: writes in place, state, sizes, compiled parts."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deploykit.errors import ExportError
from exporters.export import export_module

SPEC = "x:float32[batch,8]"


class Body(nn.Module):
    """Two layers and a dropout around a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.drop = nn.Dropout(0.3)
        self.count: Tensor
        self.register_buffer("count", torch.zeros(()))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def write_into_zeros(owner: Body, x: Tensor) -> Any:
    """The memory exists before the dropout is drawn."""
    out = x.new_zeros(x.shape[0], 2, 8)
    out[:, 0] = x
    out[:, 1] = owner.drop(owner.first(x))
    return out


def write_into_input(owner: Body, x: Tensor) -> Any:
    x[:, :4] = owner.drop(owner.first(x))[:, :4]
    return owner.last(x), x[:, [0, 3]]


def ignore_result(owner: Body, x: Tensor) -> Any:
    hidden = owner.first(x)
    F.dropout(hidden.view(-1, 2, 4), 0.5, owner.training, inplace=True)
    return owner.last(hidden)


def index_by_list(owner: Body, x: Tensor) -> Any:
    hidden = owner.drop(owner.first(x))
    hidden[:, [0, 2]] = 1.5
    return hidden[:, [0, 2, 5]]


def unused_average(owner: Body, x: Tensor) -> Any:
    """A buffer that is written and read by no output."""
    hidden = owner.drop(owner.first(x))
    owner.count.mul_(0.9).add_(hidden.mean() * 0.1)
    return hidden


def count_calls(owner: Body, x: Tensor) -> Any:
    owner.count += 1
    return owner.drop(owner.first(x)) * owner.count


def fill_by_chance(owner: Body, x: Tensor) -> Any:
    """Read for its shape before it is written to, and the same in every draw up to then."""
    hidden = owner.first(x)
    return owner.last(hidden.masked_fill_(torch.rand_like(hidden) > 0.7, 0.0))


def copy_noisy(owner: Body, x: Tensor) -> Any:
    hidden = owner.first(x)
    return owner.last(hidden.copy_(hidden * torch.rand_like(hidden)))


def copy_chosen(owner: Body, x: Tensor) -> Any:
    hidden = owner.first(x)
    return owner.last(hidden.copy_(torch.where(torch.rand(hidden.shape[0], 1) < 0.5, hidden, -hidden)))


WRITES = [
    write_into_zeros, write_into_input, ignore_result, index_by_list, unused_average, fill_by_chance, copy_noisy,
    copy_chosen,
]  # fmt: skip


@pytest.mark.parametrize("function", WRITES)
def test_writes_in_place_around_a_dropout_are_exported(tmp_path: Path, function: Any) -> None:
    result = export_module(Body(function).eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3)
    assert result.max_error < 1e-5


@pytest.mark.parametrize("draws", [None, 3])
def test_state_that_outputs_depend_on_is_refused_by_its_name(tmp_path: Path, draws: int | None) -> None:
    with pytest.raises(ExportError, match=r"^count: written in forward"):
        export_module(Body(count_calls).eval(), tmp_path / "a", inputs=[SPEC], mc_draws=draws)


def test_a_size_squared_is_written_to_torchscript(tmp_path: Path) -> None:
    class Scores(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x @ x.transpose(1, 2)).reshape(x.shape[0], x.shape[1] ** 2)

    export_module(Scores().eval(), tmp_path / "a", inputs=["x:float32[batch,seq,8]"], formats=["torchscript"])


def test_spectral_norm_keeps_its_evaluation_mode(tmp_path: Path) -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Dropout(0.3)).eval()
    assert export_module(model, tmp_path / "a", inputs=[SPEC], mc_draws=3).max_error < 1e-5


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_compiled_module_is_exported_as_it_was_written(tmp_path: Path) -> None:
    model = torch.compile(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3)).eval())
    assert isinstance(model, nn.Module)
    assert export_module(model, tmp_path / "a", inputs=[SPEC], mc_draws=3).max_error < 1e-5
