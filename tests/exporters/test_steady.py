"""Modules whose results differ from call to call by themselves are refused, also where it hardly ever shows."""

import contextlib
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deploykit.errors import ExportError
from exporters.export import export_module


class Body(nn.Module):
    """Around a function, in a larger model."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(8, 8), nn.Dropout(0.3)
        self.function = function
        self.kept: Any = 0.0

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def exported(function: Any, path: Path, draws: int | None) -> None:
    model = nn.Sequential(nn.Linear(8, 8), Body(function), nn.Linear(8, 3)).eval()
    state = torch.get_rng_state(), random.getstate()
    try:
        export_module(model, path / "a", inputs=["x:float32[batch,8]"], mc_draws=draws, formats=["torchscript"])
    finally:
        assert torch.equal(torch.get_rng_state(), state[0])
        assert random.getstate() == state[1]
        assert model[1].kept == 0.0


def by_numpy(owner: Body, x: Tensor) -> Tensor:
    return x if np.random.default_rng().random() < 1e-4 else owner.drop(owner.first(x))


def by_python(owner: Body, x: Tensor) -> Tensor:
    return x if random.Random().random() < 1e-4 else owner.drop(owner.first(x))


def by_system(owner: Body, x: Tensor) -> Tensor:
    return x if random.SystemRandom().random() < 1e-4 else owner.drop(owner.first(x))


def by_bytes(owner: Body, x: Tensor) -> Tensor:
    return x if os.urandom(2) == b"ab" else owner.drop(owner.first(x))


@pytest.mark.parametrize("function", [by_numpy, by_python, by_system, by_bytes])
@pytest.mark.parametrize("draws", [None, 3])
def test_generators_made_in_every_call_are_refused(tmp_path: Path, function: Any, draws: int | None) -> None:
    with pytest.raises(ExportError, match=r"^1: makes a random generator of its own in every call"):
        exported(function, tmp_path, draws)


def seeded(owner: Body, x: Tensor) -> Tensor:
    """The same numbers in every call, which a file can hold."""
    scale = np.random.default_rng(3).normal(size=8) + random.Random(3).random()
    return owner.drop(owner.first(x)) * torch.from_numpy(scale.astype("float32"))


def test_a_generator_with_a_seed_of_its_own_is_a_constant(tmp_path: Path) -> None:
    exported(seeded, tmp_path, 3)


def remember(owner: Body, x: Tensor) -> Tensor:
    """As a recurrent network does that goes on where the last batch ended."""
    hidden: Tensor = owner.drop(owner.first(x)) + owner.kept
    owner.kept = hidden.detach().mean(0)
    return hidden


def count(owner: Body, x: Tensor) -> Tensor:
    owner.kept += 0.1
    return owner.drop(owner.first(x)) * owner.kept  # type: ignore[no-any-return]


@pytest.mark.parametrize("function", [remember, count])
@pytest.mark.parametrize("draws", [None, 3])
def test_what_is_kept_from_call_to_call_is_refused_by_its_module(
    tmp_path: Path, function: Any, draws: int | None
) -> None:
    with pytest.raises(ExportError, match=r"^1: gives another result in a second call .* keeps something"):
        exported(function, tmp_path, draws)


class Prototypes(nn.Module):
    """Normalises its weights in every call, by another tensor or in their memory."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.last, self.in_place = nn.Linear(8, 3, bias=False), in_place

    def forward(self, x: Tensor) -> Tensor:
        weight = self.last.weight.data
        if self.in_place:
            weight.div_(weight.norm(dim=1, keepdim=True))
        else:
            self.last.weight.data = weight / weight.norm(dim=1, keepdim=True)
        return self.last(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("in_place", [False, True])
def test_weights_that_forward_writes_are_the_callers_again(tmp_path: Path, in_place: bool) -> None:
    module = Prototypes(in_place=in_place)
    weight, before = module.last.weight.data, module.last.weight.detach().clone()
    with pytest.raises(ExportError, match=r"^last.weight: written") if in_place else contextlib.nullcontext():
        export_module(module, tmp_path / "a", inputs=["x:float32[batch,8]"], formats=["torchscript"])
    assert module.last.weight.data_ptr() == weight.data_ptr()
    assert torch.equal(module.last.weight, before)


def test_memory_of_several_buffers_that_forward_writes_is_put_back_once(tmp_path: Path) -> None:
    class Spread(nn.Module):
        base: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("base", torch.full((1, 8), 3.0))
            self.register_buffer("wide", self.base.expand(4, 8))

        def forward(self, x: Tensor) -> Tensor:
            self.base.data = self.base.data.clamp_(0, 1)
            return x * self.base

    module = Spread()
    with contextlib.suppress(ExportError):
        export_module(module, tmp_path / "a", inputs=["x:float32[batch,8]"], formats=["torchscript"])
    assert module.base.eq(3).all()


def test_a_buffer_that_is_spread_and_holds_nan_is_left_alone(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(8, 3))
    module.register_buffer("table", torch.full((1, 4), torch.nan).expand(6, 4))
    export_module(module, tmp_path / "a", inputs=["x:float32[batch,8]"], formats=["torchscript"])


class Renewed(nn.Module):
    """A mean of the past under a name that gets another tensor in every call, which no graph shows."""

    def __init__(self, part: bool) -> None:
        super().__init__()
        self.last, self.part = nn.Linear(8, 3), part
        self.level: Tensor
        self.register_buffer("level", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = F.dropout(self.last(x - self.level if self.part else x), 0.3, self.training)
        self.level = self.level * 0.9 + 0.1
        return found


@pytest.mark.parametrize("draws", [None, 3])
def test_a_buffer_that_gets_another_tensor_is_refused_by_its_name(tmp_path: Path, draws: int | None) -> None:
    module = nn.Sequential(Renewed(part=True)).eval()
    with pytest.raises(ExportError, match=r"^0\.level: set in forward and used for an output"):
        export_module(module, tmp_path / "a", inputs=["x:float32[batch,8]"], mc_draws=draws)
    assert torch.equal(module[0].level, torch.zeros(8))
    module = nn.Sequential(Renewed(part=False)).eval()
    assert export_module(module, tmp_path / "b", inputs=["x:float32[batch,8]"], mc_draws=draws).max_error < 1e-5


class Counting(nn.Module):
    """Two calls give the same: only the eleventh does not."""

    calls: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls, self.seen = self.calls + 1, self.seen + 1
        return F.dropout(self.last(x), 0.3, self.training) * torch.where(self.calls > 10, 2.0, 1.0)


class Largest(nn.Module):
    peak: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("peak", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.peak = torch.maximum(self.peak, x.detach().abs().amax(0))
        return x / self.peak


class MadeOnce(nn.Module):
    """A table that the first call makes, as that of rotary embeddings."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(1, 8))

    def forward(self, x: Tensor) -> Tensor:
        if self.table.shape[0] < 100:
            self.table = torch.arange(100.0)[:, None] * torch.ones(8)
        return x * self.table[7]


@pytest.mark.parametrize(("module", "name"), [(Counting(), "calls"), (Largest(), "peak")])
def test_a_buffer_that_gets_another_tensor_is_refused_where_two_calls_agree(
    tmp_path: Path, module: nn.Module, name: str
) -> None:
    with pytest.raises(ExportError, match=rf"^{name}: set in forward and used for an output"):
        export_module(module.eval(), tmp_path / "a", inputs=["x:float32[batch,8]"])


def test_a_table_that_the_first_call_makes_is_exported(tmp_path: Path) -> None:
    assert export_module(MadeOnce().eval(), tmp_path / "a", inputs=["x:float32[batch,8]"]).max_error < 1e-5
