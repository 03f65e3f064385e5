"""Which values of a graph are numbers of rows: eager PyTorch says whether a row is the same among more rows."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import Tensor, fx, nn

from deploykit.tensors import TensorSpec
from exporters.capture.graph import capture
from exporters.rewrite.drawplan import MonteCarloPlan, plan_monte_carlo
from exporters.rewrite.rowplaces import numbers_of_rows

ROWS = 3000
"""Beyond every limit of the functions, which the few rows of an export's own checks do not reach."""


def rows(x: Tensor) -> int:
    return x.shape[0]


def places(x: Tensor) -> Tensor:
    """(rows, 1) int64."""
    return torch.arange(x.shape[0])[:, None]


def filled(x: Tensor) -> Tensor:
    return x + torch.zeros_like(x).fill_(rows(x))


def written(x: Tensor) -> Tensor:
    found = torch.zeros(rows(x), 1, dtype=torch.int64)
    found[:] = places(x)
    return x + found


def written_into_a_part(x: Tensor) -> Tensor:
    found = x.clone()
    found[:, 0] = found[:, 0] * rows(x)
    return found


COUNTING: dict[str, Callable[[Tensor], Tensor]] = {
    "arange": lambda x: x + places(x),
    "arange from a number": lambda x: x + torch.arange(rows(x) // 1000, rows(x) // 1000 + 8),
    "linspace": lambda x: x + torch.linspace(0, 1, rows(x))[:, None],
    "linspace to a number": lambda x: x + torch.linspace(0, rows(x), 8),
    "scalar_tensor": lambda x: x * torch.scalar_tensor(rows(x)),
    "full": lambda x: x + torch.full((8,), rows(x)),
    "full, by name": lambda x: x + torch.full((8,), fill_value=rows(x) / 1000),
    "new_full": lambda x: x + x.new_full((8,), rows(x)),
    "full_like": lambda x: x + torch.full_like(x, rows(x)),
    "fill": filled,
    "a product": lambda x: x * rows(x),
    "a product with a fraction": lambda x: x * rows(x) ** -0.5,
    "a product with a logarithm": lambda x: x * (math.log(rows(x)) / 3),
    "a limit that is a logarithm": lambda x: x.clamp(max=math.log(rows(x)) / 9),
    "a product with a truth": lambda x: x * (rows(x) > 2000),
    "a difference": lambda x: rows(x) - x,
    "a multiple, by name": lambda x: torch.add(x, x, alpha=rows(x)),
    "a limit, by name": lambda x: torch.clamp(x, max=rows(x) / 1e4),
    "a scale": lambda x: F.scaled_dot_product_attention(x[:, None], x.view(-1, 2, 4).repeat(1, 1, 2), x.view(-1, 2, 4),
                                                        scale=rows(x) / 1000)[:, 0],
    "a multiple of a product": lambda x: torch.addmm(torch.zeros(8), x, torch.ones(8, 8), alpha=rows(x)),
    "where": lambda x: torch.where(x > 1, rows(x), x),
    "masked_fill": lambda x: x.masked_fill(x > 1, rows(x)),
    "index_fill": lambda x: x.index_fill(1, torch.tensor([0]), rows(x)),
    "scatter": lambda x: x.scatter(1, torch.zeros_like(x[:, :1], dtype=torch.int64), rows(x)),
    "select": lambda x: x[:, rows(x) // 1000],
    "narrow": lambda x: x.narrow(1, rows(x) // 1000, 2),
    "tril": lambda x: x + torch.ones(4, 8).tril(rows(x) // 1000).sum(0),
    "kthvalue": lambda x: x.kthvalue(1 + rows(x) // 1000, 1)[0],
    "renorm": lambda x: x.renorm(2, 0, rows(x) / 2000),
    "expanded to others": lambda x: x + places(x).expand_as(x),
    "rolled": lambda x: x.roll(rows(x) // 1000, 1),
    "rolled, by name": lambda x: torch.roll(x, shifts=(0, rows(x) // 1000), dims=(0, 1)),
    "padded and cut": lambda x: F.pad(x, (rows(x) // 1000, -(rows(x) // 1000))),
    "other rows": lambda x: torch.cat([x, x * 2])[rows(x) // 1000 : rows(x) // 1000 + rows(x)],
    "written": written,
    "written into a part": written_into_a_part,
    "a tensor of numbers": lambda x: x + torch.tensor([rows(x), 1]).repeat(4),
}  # fmt: skip

ALONE: dict[str, Callable[[Tensor], Tensor]] = {
    "new_zeros": lambda x: x + places(x).new_zeros(rows(x), 1),
    "new_ones": lambda x: x + places(x).new_ones(rows(x), 1),
    "new_full": lambda x: x + places(x).new_full((rows(x), 1), 3),
    "new_empty": lambda x: x + places(x).new_empty(rows(x), 1).fill_(3),
    "zeros_like": lambda x: x + torch.zeros_like(places(x)),
    "ones_like": lambda x: x + torch.ones_like(places(x)),
    "full_like": lambda x: x + torch.full_like(places(x), 3),
    "empty_like": lambda x: x + torch.empty_like(places(x)).fill_(3),
    "expand_as": lambda x: x + x[:, :1].expand_as(places(x).expand(-1, 8)),
    "view_as": lambda x: x.view(-1).view_as(places(x).expand(-1, 8)),
    "reshape_as": lambda x: x.t().t().reshape(-1).reshape_as(places(x).expand(-1, 8)),
    "at its own place": lambda x: x[torch.arange(rows(x)), 1],
    "gathered at its own place": lambda x: x.gather(0, places(x)),
    "a slice of rows": lambda x: torch.cat([x, x * 2])[rows(x) :],
    "a part of rows": lambda x: torch.cat([x, x * 2]).narrow(0, rows(x), rows(x)),
    "parts of rows": lambda x: torch.split(torch.cat([x, x * 2]), rows(x))[1],
    "repeated for each row": lambda x: x + torch.ones(1, 8).repeat_interleave(rows(x), 0),
    "a filter for each row": lambda x: F.conv1d(x[None], x[:, None, :2], groups=rows(x))[0],
    "folded": lambda x: x.view(rows(x) * 2, 4).cos().view(-1, 8),
    "expanded to all rows": lambda x: x + torch.ones(1, 8).expand(rows(x), 8),
    "repeated to all rows": lambda x: x + torch.ones(1, 8).repeat(rows(x), 1),
    "tiled to all rows": lambda x: x + torch.ones(8).tile((rows(x), 1)),
    "full": lambda x: x + torch.full((rows(x), 8), 3.0),
    "unfolded by name": lambda x: x.reshape(-1).unflatten(0, (rows(x), 8)),
    "parts of two sizes": lambda x: torch.cat([x, x * 2, x]).split([rows(x), 2 * rows(x)])[0],
    "parts at places": lambda x: torch.cat([x, x * 2]).tensor_split((rows(x),))[1],
}


TABLE = torch.randn(ROWS + 1, 8, generator=torch.Generator().manual_seed(1))
EQUAL = TABLE[:1].repeat(ROWS + 1, 1)
COLUMNS = EQUAL.t().contiguous()


LAYERS = torch.stack([EQUAL, EQUAL * 2])


def changed_first(x: Tensor) -> Tensor:
    table = EQUAL.double()
    table[0] = 3.0
    return x + table.float()[: rows(x)]


TABLES: dict[str, Callable[[Tensor], Tensor]] = {
    "different ones": lambda x: x + TABLE[: rows(x)],
    "no more equal ones": changed_first,
    "equal ones": lambda x: x + EQUAL[: rows(x)],
    "equal ones from the end": lambda x: x + EQUAL[-rows(x) :],
    "equal columns": lambda x: x + COLUMNS.narrow(1, 0, rows(x)).t(),
    "equal ones of one of two layers": lambda x: x + LAYERS[1, : rows(x)],
    "equal ones of several layers": lambda x: x + LAYERS[:2, : rows(x)].clone().sum(0),
    "equal ones, computed": lambda x: x + (TABLE * 0)[: rows(x)],
    "different ones, computed": lambda x: x + (TABLE * 2)[: rows(x)],
    "equal ones in another type": lambda x: x + EQUAL.double()[: rows(x)].float(),
}


class Each(nn.Module):
    def __init__(self, functions: dict[str, Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        return [function(tensors[0]) for function in self.functions.values()]


Planned = tuple[MonteCarloPlan, dict[str, fx.Node]]


def planned(functions: dict[str, Callable[[Tensor], Tensor]]) -> Planned:
    example = [torch.randn(5, 8)]
    captured = capture(Each(functions), example, [TensorSpec(name="x", dtype="float32", shape=("batch", 8))])
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    assert captured.bounds.get("batch", {}).get("max", ROWS) >= ROWS, "else numbers of rows are constants"
    return plan_monte_carlo(captured, [], "batch", example), dict(zip(functions, output.args[0], strict=True))


@pytest.fixture(scope="module")
def counting() -> Planned:
    return planned(COUNTING)


@pytest.fixture(scope="module")
def alone() -> Planned:
    return planned(ALONE)


@pytest.fixture(scope="module")
def tables() -> Planned:
    return planned(TABLES)


def stands_alone(function: Callable[[Tensor], Tensor]) -> bool:
    x = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(0))
    return torch.allclose(function(x.clone())[ROWS // 2 :], function(x[ROWS // 2 :].clone()))


@pytest.mark.parametrize("name", COUNTING)
def test_what_counts_the_rows_is_found(name: str, counting: Planned) -> None:
    plan, nodes = counting
    assert not stands_alone(COUNTING[name])
    assert nodes[name] in numbers_of_rows(plan, plan.captured.graph.nodes)


@pytest.mark.parametrize("name", ALONE)
def test_what_only_has_as_many_rows_does_not_count_them(name: str, alone: Planned) -> None:
    plan, nodes = alone
    assert stands_alone(ALONE[name])
    assert nodes[name] not in numbers_of_rows(plan, plan.captured.graph.nodes)


@pytest.mark.parametrize("name", TABLES)
def test_the_first_rows_of_a_table_count_unless_all_are_equal(name: str, tables: Planned) -> None:
    plan, nodes = tables
    assert (nodes[name] in numbers_of_rows(plan, plan.captured.graph.nodes)) is not stands_alone(TABLES[name])
