"""Where the rows of a batch lie in a tensor, in whatever way the batch is folded; held against numpy."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deploykit.errors import ExportError
from deploykit.tensors import TensorSpec
from exporters.capture.graph import Captured, capture
from exporters.rewrite.layout import BatchAxis, find_axis, symbolic_shape
from exporters.rewrite.probe import Movement

Array = np.ndarray[Any, Any]

BATCH, DRAWS = 3, 4
ROW = (2, 5, 7)
"""What lies before the dimension of the batch, in it, and behind."""

FOLDED = pytest.mark.parametrize("outer", [False, True])


def rows(count: int) -> Array:
    return np.arange(count * np.prod(ROW)).reshape(count, *ROW)


def laid(values: Array, outer: bool) -> Tensor:
    """(2, batch * 5, 7) of (batch, 2, 5, 7), in which the 5 vary slower than the batch, or faster."""
    order = (1, 2, 0, 3) if outer else (1, 0, 2, 3)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(order)).reshape(2, -1, 7))


@FOLDED
def test_rows_are_laid_out_and_measured(outer: bool) -> None:
    axis, wanted = BatchAxis(dimension=1, folded_outer=outer), laid(rows(BATCH), outer)
    units = torch.from_numpy(rows(BATCH).reshape(BATCH, -1))
    assert torch.equal(axis.place(units, wanted.shape), wanted)
    assert axis.row(wanted.shape, BATCH) == ROW
    assert axis.split(wanted.shape, BATCH) == ((10, BATCH, 7) if outer else (2, BATCH, 35))


@FOLDED
def test_draws_vary_slower_than_rows(outer: bool) -> None:
    axis, every = BatchAxis(dimension=1, folded_outer=outer), rows(DRAWS * BATCH)
    each = [laid(every[draw * BATCH : (draw + 1) * BATCH], outer) for draw in range(DRAWS)]
    together = laid(every, outer)
    assert torch.equal(axis.draws_first(together, BATCH, DRAWS), torch.stack(each))
    assert torch.equal(axis.draws_folded(torch.stack(each), BATCH), together)
    for draw in range(DRAWS):
        assert torch.equal(axis.select(together, BATCH, DRAWS, draw), each[draw])
    assert torch.equal(axis.tile(each[0], BATCH, DRAWS), laid(np.tile(every[:BATCH], (DRAWS, 1, 1, 1)), outer))


@FOLDED
def test_a_batch_that_comes_first(outer: bool) -> None:
    """Rows need no moving there, unless the rest of the dimension varies slower."""
    values = np.arange(BATCH * 10).reshape(BATCH, 5, 2)
    wanted = torch.from_numpy(values.transpose(1, 0, 2).reshape(-1, 2) if outer else values.reshape(-1, 2))
    axis = BatchAxis(dimension=0, folded_outer=outer)
    assert torch.equal(axis.place(torch.from_numpy(values.reshape(BATCH, -1)), wanted.shape), wanted)


class Shapes(nn.Module):
    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        (x,) = tensors
        return {
            "first": x + 1,
            "second": x.transpose(0, 1) + 1,
            "with steps": x.reshape(-1, 6) + 1,
            "steps with it": x.transpose(0, 1).reshape(-1, 6) + 1,
            "one row": x[:, :1].reshape(-1, 6) + 1,
            "between": x.transpose(0, 1).reshape(2, 2, -1, 6).reshape(2, -1, 6).transpose(0, 1).reshape(-1, 6) + 1,
            "none": x.sum(0) + 1,
            "twice": x[:, 0] @ x[:, 1].T,
            "others beside": torch.cat([x, torch.ones(3, 4, 6)]) + 1,
        }


@pytest.fixture(scope="module")
def shapes() -> tuple[Captured, Movement, dict[str, Any]]:
    example = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
    captured = capture(Shapes(), [example], [TensorSpec(name="x", dtype="float32", shape=("batch", 4, 6))])
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    names = Shapes()(example).keys()
    return captured, Movement(captured, [], [example]), dict(zip(names, output.args[0], strict=True))


AXES = {
    "first": BatchAxis(dimension=0),
    "second": BatchAxis(dimension=1),
    "with steps": BatchAxis(dimension=0),
    "steps with it": BatchAxis(dimension=0, folded_outer=True),
    "one row": BatchAxis(dimension=0),
    "none": None,
}


@pytest.mark.parametrize("name", AXES)
def test_the_batch_is_found(name: str, shapes: tuple[Captured, Movement, dict[str, Any]]) -> None:
    captured, moved, nodes = shapes
    assert find_axis(nodes[name], captured.symbols["batch"], moved) == AXES[name]


REFUSED = {
    "between": "dimension 0 the batch is folded between two other dimensions",
    "twice": r"\['batch', 'batch'\] carries the batch twice",
    "others beside": r"dimension 0 is batch \+ 3, which is not a multiple of the batch",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_batch_that_is_not_in_one_place_is_refused(
    name: str, shapes: tuple[Captured, Movement, dict[str, Any]]
) -> None:
    captured, moved, nodes = shapes
    with pytest.raises(ExportError, match=REFUSED[name]):
        find_axis(nodes[name], captured.symbols["batch"], moved)


class Divided(nn.Module):
    """Sizes that are quotients: of scores of every two steps, as in ProphetNet, and of steps taken together."""

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        (x,) = tensors
        scores = x @ x.transpose(1, 2)
        taken = F.avg_pool1d(x, 2) @ F.avg_pool1d(x, 2).transpose(1, 2)
        return {
            "square": scores.view(-1, x.shape[1]) + 1,
            "every other": scores[:, ::2].reshape(-1, x.shape[1]) + 1,
            "pooled": F.avg_pool1d(scores, 3, 2).flatten(0, 1) + 1,
            "pooled square": taken.view(-1, taken.shape[2]) + 1,
            "pooled twice": F.avg_pool1d(F.avg_pool1d(scores, 2), 2).flatten(1) + 1,
        }


def test_sizes_are_those_of_torch_and_hold_the_batch_where_it_is() -> None:
    example = torch.randn(5, 12, 6, generator=torch.Generator().manual_seed(0))
    captured = capture(Divided(), [example], [TensorSpec(name="x", dtype="float32", shape=("batch", "steps", 6))])
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    moved, symbols = Movement(captured, [], [example]), captured.symbols
    nodes = dict(zip(Divided()(example), output.args[0], strict=True))
    for batch, steps in [(2, 12), (3, 13), (5, 14), (7, 15), (4, 21)]:
        for name, wanted in Divided()(torch.zeros(batch, steps, 6)).items():
            sizes = [
                size.subs({symbols["batch"]: batch, symbols["steps"]: steps}) for size in symbolic_shape(nodes[name])
            ]
            assert tuple(map(int, sizes)) == wanted.shape, name
    for node in nodes.values():
        assert find_axis(node, symbols["batch"], moved) == BatchAxis(dimension=0)
