"""Tables of positions: the dimension that they bound takes exactly the sizes that eager PyTorch takes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import Tensor, nn

import deploykit
from deploykit.bounds import Bounds
from deploykit.errors import DataError
from exporters.eager.entry import Entry, arrangement_for
from exporters.export import export_module
from exporters.inputs import find_inputs
from exporters.subject import DrawOptions, prepare

SPEC = "x:float32[batch,steps,3]"


class Placed(nn.Module):
    """Adds what ``forward`` looks up in a table of 30 places."""

    def __init__(self, forward: Callable[["Placed", Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.drop = nn.Embedding(30, 3), nn.Dropout(0.5)
        self.register_buffer("numbers", torch.arange(30)[None])
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x + self._forward(self, x))


def bounds(module: nn.Module, *specs: str, draws: int | None = None) -> Bounds:
    inputs = find_inputs(module, specs=specs)
    entry = Entry(module, "forward", inputs.names, arrangement_for(module, "forward", inputs.names, "auto"))
    return prepare(entry, inputs, DrawOptions(draws=draws)).captured.bounds


def takes(module: nn.Module, steps: int, rows: int = 2) -> bool:
    try:
        module.eval()(torch.zeros(rows, steps, 3))
    except (IndexError, RuntimeError):
        return False
    return True


def with_a_token_before(m: Placed, x: Tensor) -> Tensor:
    longer = torch.cat([torch.zeros_like(x[:, :1]), x], 1)
    return m.table(torch.arange(longer.shape[1]))[1:]


def counted_from_a_mask(m: Placed, x: Tensor) -> Tensor:
    """As RoBERTa does, in which padding has a position of its own."""
    mask = x[:, :, 0].ne(7).int()
    return m.table((torch.cumsum(mask, dim=1).type_as(mask) * mask).long() + 1)


def counted_from_ones(m: Placed, x: Tensor) -> Tensor:
    """As OPT does where it gets no mask."""
    mask = torch.ones(x.shape[:2])
    return m.table((torch.cumsum(mask, dim=-1) * mask - 1).long() + 2)


BOUNDED: dict[str, Callable[[Placed, Tensor], Tensor]] = {
    "numbered": lambda m, x: m.table(torch.arange(x.shape[1])),
    "of int32, cast": lambda m, x: m.table(torch.arange(0, x.shape[1], dtype=torch.int32).long()),
    "added to, as in OPT and BART": lambda m, x: m.table(torch.arange(x.shape[1]) + 2),
    "taken from": lambda m, x: m.table(torch.arange(3, 3 + x.shape[1]) - 1),
    "from another start": lambda m, x: m.table(torch.arange(2, 2 + x.shape[1])),
    "with None": lambda m, x: m.table(torch.arange(x.shape[1])[None, :]),
    "expanded over rows": lambda m, x: m.table(torch.arange(x.shape[1]).unsqueeze(0).expand(x.shape[0], -1)),
    "expanded as": lambda m, x: m.table(torch.arange(x.shape[1]).expand_as(x[:, :, 0])),
    "repeated": lambda m, x: m.table(torch.arange(x.shape[1]).repeat(x.shape[0], 1)),
    "a slice of a buffer": lambda m, x: m.table(m.numbers[:, : x.shape[1]]),
    "in brackets": lambda m, x: m.table.weight[torch.arange(x.shape[1])],
    "rows of the table": lambda m, x: m.table.weight.index_select(0, torch.arange(x.shape[1])),
    "gathered": lambda m, x: m.table.weight.gather(0, torch.arange(x.shape[1])[:, None].expand(-1, 3)),
    "one hot": lambda m, x: F.one_hot(torch.arange(x.shape[1]), 30).float() @ m.table.weight,
    "twice as many": lambda m, x: m.table(torch.arange(2 * x.shape[1]))[::2],
    "with a token before": with_a_token_before,
    "counted from a mask, as in RoBERTa": counted_from_a_mask,
    "counted from ones, as in OPT": counted_from_ones,
}


@pytest.mark.parametrize("name", BOUNDED)
def test_the_sizes_that_are_told_are_those_that_the_table_has_places_for(name: str) -> None:
    module = Placed(BOUNDED[name])
    (found,) = bounds(module, SPEC).items()
    assert found[0] == "steps"
    assert takes(module, found[1]["max"])
    assert not takes(module, found[1]["max"] + 1)


def counted(m: Placed, x: Tensor) -> Tensor:
    return m.table((x[:, :, 0] < 1).cumsum(1).clamp(max=9))


def written_to(m: Placed, x: Tensor) -> Tensor:
    numbers = torch.arange(x.shape[1])
    numbers[numbers > 29] = 29
    return m.table(numbers)


UNBOUNDED: dict[str, Callable[[Placed, Tensor], Tensor]] = {
    "clamped": lambda m, x: m.table(torch.arange(x.shape[1]).clamp(max=29)),
    "around again": lambda m, x: m.table(torch.arange(x.shape[1]) % 30),
    "every fourth": lambda m, x: m.table(torch.arange(0, x.shape[1], 4)).sum(0),
    "halved": lambda m, x: m.table(torch.arange(x.shape[1]) // 2),
    "no more than there are": lambda m, x: m.table(torch.arange(min(x.shape[1], 30))).sum(0),
    "some of them": lambda m, x: m.table(torch.arange(x.shape[1])[:5]).sum(0),
    "counted": counted,
    "numbers of segments": lambda m, x: m.table((x[:, :, 0].long() == 7).cumsum(1)),
    "added up": lambda m, x: m.table((0 * x[:, :, 0].long()).cumsum(1)),
    "written to": written_to,
    "a table as long": lambda m, x: x[0, torch.arange(x.shape[1])],
}


def test_of_what_is_computed_otherwise_nothing_is_told() -> None:
    for name, forward in UNBOUNDED.items():
        assert takes(Placed(forward), 31), f"{name}: a claim would be wrong"

    def told(forward: Callable[[Placed, Tensor], Tensor]) -> bool:
        return "max" in bounds(Placed(forward), SPEC).get("steps", {})

    if told(lambda m, x: sum(forward(m, x) for forward in UNBOUNDED.values())):  # type: ignore[arg-type, return-value]
        assert [name for name, forward in UNBOUNDED.items() if told(forward)] == []
        pytest.fail("of all together something is told")


def test_dimensions_of_no_size_need_no_places() -> None:
    """Numbers that are expanded over a dimension of the data are looked up nowhere where that is empty."""

    class Over(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(30, 3)

        def forward(self, x: Tensor, heads: Tensor) -> Tensor:
            numbers = torch.arange(x.shape[1]).expand(heads.shape[1], -1)
            return x.sum((1, 2)) + self.table(numbers).sum()

    assert bounds(Over(), SPEC, "heads:float32[batch,heads]") == {}
    assert Over()(torch.zeros(2, 31, 3), torch.zeros(2, 0)).shape == (2,)


def test_the_number_of_rows_may_be_bounded_too() -> None:
    module = Placed(lambda m, x: m.table(torch.arange(x.shape[0]))[:, None])
    assert bounds(module, SPEC) == {"batch": {"max": 30}}
    assert takes(module, 5, rows=30)
    assert not takes(module, 5, rows=31)


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_a_row_that_is_too_long_comes_to_no_runtime(tmp_path: Path, runner: str) -> None:
    result = export_module(Placed(BOUNDED["numbered"]), tmp_path / "a", inputs=[SPEC], mc_draws=3)
    assert result.manifest.bounds == {"steps": {"max": 30}}
    assert result.notes == ("dimension steps: the module's code allows only sizes with max 30",)
    wanted = r"dimension steps is 31, and the code of the model allows at most 30"
    with deploykit.load(tmp_path / "a", runner=runner) as model:
        assert model.predict(np.zeros((2, 30, 3), np.float32))["output.mean"].shape == (2, 30, 3)
        with pytest.raises(DataError, match=wanted):
            model.predict(np.zeros((2, 31, 3), np.float32))
    np.save(tmp_path / "x.npy", np.zeros((4, 31, 3), np.float32))
    with pytest.raises(DataError, match=wanted):
        deploykit.run(tmp_path / "a", tmp_path / "x.npy", tmp_path / "run", runner=runner, engine="local")
