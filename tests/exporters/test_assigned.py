"""Values assigned under a mask (``h[mask] = 0``): what eager PyTorch makes of them is the oracle."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from exporters.capture.assigned import MaskedAssignments
from exporters.export import export_module

Assign = Callable[[Tensor, Tensor, Tensor], None]
"""Given ``h`` (5, 3, 4), which is written to, a mask (5, 3) and a line (4)."""


def assign(index: Callable[[Tensor, Tensor, Tensor], Any], value: Any) -> Assign:
    def run(h: Tensor, mask: Tensor, line: Tensor) -> None:
        h[index(h, mask, line)] = value(line) if callable(value) else value

    return run


def of_booleans(h: Tensor, mask: Tensor, line: Tensor) -> None:
    positive = h > 0
    positive[mask] = False
    positive[:, :, line > 0] = 1
    h.mul_(positive)


def of_a_column(h: Tensor, mask: Tensor, _: Tensor) -> None:
    h[:, 1, 2][~mask[:, 0]] = -3.0


def cut(h: Tensor, mask: Tensor, _: Tensor) -> None:
    whole = (h * 9).long()
    whole[mask] = 1.9  # type: ignore[assignment]
    h.copy_(whole)


def doubled(h: Tensor, mask: Tensor, _: Tensor) -> None:
    h[mask] *= 2


CHOSEN: dict[str, Assign] = {
    "a number": assign(lambda h, mask, line: mask, 2),
    "an infinite number, by the values themselves": assign(lambda h, mask, line: h < 0, -torch.inf),
    "a tensor of one element": assign(lambda h, mask, line: mask, torch.tensor([[3.0]])),
    "a line at each place": assign(lambda h, mask, line: mask, lambda line: line),
    "a part behind the mask": assign(lambda h, mask, line: (mask, slice(1, 3)), 0.5),
    "a number behind the mask": assign(lambda h, mask, line: (mask, -1), 0.5),
    "the last dimension": assign(lambda h, mask, line: (..., line > 0), 7.0),
    "the dimension in the middle": assign(lambda h, mask, line: (slice(None), mask[0]), lambda line: line),
    "before an ellipsis": assign(lambda h, mask, line: (mask[:, 0], ..., 1), 4.0),
    "behind a new dimension": assign(lambda h, mask, line: (None, mask), 4.0),
    "one row": assign(lambda h, mask, line: (2, mask[2]), lambda line: line[:1]),
    "all or nothing": assign(lambda h, mask, line: (line > 9).any(), 4.0),
    "a column": of_a_column,
    "booleans": of_booleans,
}
FOUND: dict[str, Assign] = {
    "a fraction among integers": cut,
    "values of its own for each place": doubled,
    "a mask and numbers": assign(lambda h, mask, line: (mask[:, 0], torch.tensor([1])), 1.0),
    "Python's own": assign(lambda h, mask, line: (True, mask), 1.0),
}


class Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*CHOSEN, *FOUND])
def test_what_is_assigned_is_what_torch_assigns(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    h, line = (torch.randn(shape, generator=generator) for shape in ((5, 3, 4), (4,)))
    mask, run = torch.rand(5, 3, generator=generator) > 0.5, {**CHOSEN, **FOUND}[name]
    results, names = [], []
    for mode in (contextlib.nullcontext(), MaskedAssignments()):
        found = h.clone()
        with Seen() as seen, mode:
            run(found, mask, line)
        results.append(found)
        names.append(seen.names)
    assert torch.equal(*results)
    assert name == "all or nothing" or not torch.equal(results[0], h)
    assert "aten::index_put_" in names[0]
    assert ("aten::index_put_" in names[1]) == (name in FOUND)


class Filled(nn.Module):
    """Behind a dropout and before it, along rows, along features, by a draw of its own; rows keep their places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.drop = nn.Linear(8, 8), nn.Linear(8, 3), nn.Dropout(0.3)
        self.token = nn.Parameter(torch.linspace(-1, 1, 8))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x.clone()
        x[torch.isnan(x)] = 0.0
        hidden = self.drop(self.first(x))
        hidden[x[:, 0] > 0] = self.token
        scores = self.last(hidden)
        scores[scores.argmax(1) == 1, 2:] = -9.0
        noisy = x.clone()
        noisy[torch.rand_like(x) < 0.5 * self.training] = 0
        return {"hidden": hidden, "scores": scores, "noisy": noisy}


@pytest.mark.parametrize("draws", [None, 3])
def test_rows_with_values_assigned_under_masks_are_exported(draws: int | None, tmp_path: Path) -> None:
    """The export compares both formats with the module, draw by draw."""
    torch.manual_seed(0)
    result = export_module(Filled().eval(), tmp_path / "a", inputs=["x:float32[batch,8]"], mc_draws=draws)
    assert result.max_error < 1e-5
    assert {record.format for record in result.manifest.parity} == {"onnx", "torchscript"}
    if draws:
        assert result.manifest.monte_carlo is not None
        assert result.manifest.monte_carlo.form == "batched"
        assert [site.kind for site in result.manifest.monte_carlo.sites] == ["dropout", "uniform"]
