"""A linear layer behind a dropout of many units is summed up in pieces, and is what it was."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from exporters.export import ExportResult, export_module
from exporters.noise import mask_ops
from exporters.rewrite.wide import PIECE_UNITS
from tests.exporters.test_monte_carlo import SPEC, clients, names_of, oracle

MAPS = 85
UNITS = MAPS * 49
"""Several pieces, of which the last is smaller: of the layer's sum, and of the words where there is no sum."""


class Head(nn.Module):
    """The end of a convolutional network: maps of features, dropout, a linear layer."""

    def __init__(self, p: float = 0.3, *, bias: bool = True) -> None:
        super().__init__()
        self.body, self.drop = nn.Linear(6, UNITS), nn.Dropout(p)
        self.head = nn.Linear(UNITS, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(x).relu().view(-1, MAPS, 7, 7)
        return self.head(self.drop(maps).flatten(1))


class Twice(Head):
    """What is dropped is used once more, so that it must exist."""

    def forward(self, x: Tensor) -> Tensor:
        dropped = self.drop(self.body(x))
        return self.head(dropped) + dropped.mean(-1, keepdim=True)


class Drawn(Head):
    """The values differ between draws already."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.body(self.drop(x))))


class RowBias(Head):
    """The bias is a row's own."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.drop(self.body(x)), self.head.weight, self.other(x))


class OneNumber(Head):
    """The weight is a vector."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.drop(self.body(x)), self.head.weight[0])


class Apart(Head):
    """Not the units of a row, but each map, goes through the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(49, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.body(x).view(-1, MAPS, 49))).sum(1)


def exported(module: nn.Module, path: Path) -> ExportResult:
    return export_module(module.eval(), path, inputs=[SPEC], mc_draws=5, keep_draws=True)


def products(result: ExportResult) -> int:
    graph = onnx.load(result.path / "model.onnx").graph
    return sum(node.op_type in ("Gemm", "MatMul") for node in graph.node)


@pytest.mark.parametrize(
    ("make", "in_pieces"),
    [
        (Head, True),
        (lambda: Head(bias=False), True),
        (lambda: Head(p=1.0), True),
        (Twice, False),
        (Drawn, False),
        (Apart, False),
        pytest.param(RowBias, False, marks=pytest.mark.exhaustive),
        pytest.param(OneNumber, False, marks=pytest.mark.exhaustive),
    ],
    ids=["maps", "no bias", "all dropped", "used twice", "drawn before", "each map", "bias of rows", "vector"],
)
def test_the_sum_of_the_pieces_is_the_layer(make: Callable[[], nn.Module], in_pieces: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for size in (mask_ops._PIECE_UNITS, PIECE_UNITS):
        keys = torch.zeros(UNITS, dtype=torch.int32), torch.zeros(UNITS, dtype=torch.int32)
        *before, last = [len(first) for first, _ in mask_ops.pieces(keys, size)]
        assert last < before[-1]
    module = make()
    result = exported(module, tmp_path / "a")
    assert (products(result) > 3) == in_pieces
    section = result.manifest.monte_carlo
    assert section is not None
    assert section.form == "batched"
    ids = np.array([3, 2**40, -5], dtype=np.int64)
    x = np.random.default_rng(1).standard_normal((3, 6)).astype(np.float32)
    module.train()
    wanted = oracle(module, x, ids, 9, range(2, 9))
    for client in clients(result.path, names_of(result)).values():
        got = client({"x": x}, sample_ids=ids, seed=9, first_draw=2, draws=7)
        scale = max(1, np.abs(wanted).max())
        np.testing.assert_allclose(np.swapaxes(got["output.draws"], 0, 1), wanted, rtol=0, atol=1e-5 * scale)


def test_many_units_are_cut_into_larger_pieces() -> None:
    """Each is a part of the graph, and 16 of them are enough."""
    keys = torch.arange(12_100, dtype=torch.int32), torch.arange(12_100, dtype=torch.int32)
    found = [first for first, _ in mask_ops.pieces(keys, PIECE_UNITS)]
    assert [len(piece) for piece in found] == [757] * 15 + [745]
    assert torch.equal(torch.cat(found), keys[0])


def test_half_precision_is_not_summed_in_pieces(tmp_path: Path) -> None:
    """Each piece would round the sum; inside a model of float32 the export would be refused for it."""

    class Half(Head):
        def __init__(self) -> None:
            super().__init__()
            self.head.half()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.drop(self.body(x).relu().half())).float()

    torch.manual_seed(0)
    result = export_module(Half().eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3, formats=["torchscript"])
    section = result.manifest.monte_carlo
    assert section is not None
    assert section.form == "batched"
