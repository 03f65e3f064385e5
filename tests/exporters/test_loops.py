"""The passes of a loop around dropouts that a user wrote are found in its graph, where they can run as one."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deploykit.tensors import TensorSpec
from exporters.capture.graph import capture
from exporters.capture.reach import reached_by
from exporters.noise.sites import find_draws, operation_of
from exporters.rewrite.passes import FEWEST, find_passes

Found = Iterator[Tensor]


def drop(x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, True)


def passes(x: Tensor, count: int = FEWEST) -> Found:
    for _ in range(count):
        yield (drop(x) * 2).cos()


def scaled(x: Tensor) -> Found:
    """Each pass takes another multiple: what is dropped is alike no more."""
    for factor in range(FEWEST):
        yield drop(x * factor)


def scaled_later(x: Tensor) -> Found:
    for factor in range(FEWEST):
        yield (drop(x) * factor).cos()


def crossed(x: Tensor) -> Found:
    """A pass takes what another one drew."""
    drawn = [drop(x) for _ in range(FEWEST)]
    for index in range(FEWEST):
        yield drawn[index] + drawn[index - 1].cos()


def uneven(x: Tensor) -> Found:
    """One of them takes two results, and the others take theirs twice."""
    drawn = [drop(x) for _ in range(FEWEST)]
    for index in range(FEWEST):
        yield drawn[index] + drawn[max(index, 1)]


def of_the_first(x: Tensor) -> Found:
    """All take what the first one drew."""
    drawn = [drop(x) for _ in range(FEWEST)]
    for each in drawn:
        yield torch.atan2(drawn[0], each.cos())


def joined(x: Tensor) -> Found:
    """What comes of all passes belongs to none."""
    total = torch.stack([drop(x) for _ in range(FEWEST)]).sum(0)
    for _ in range(FEWEST):
        yield total.sin()


def shared(x: Tensor) -> Found:
    """A draw before the loop is the same for all passes."""
    first = drop(x)
    for _ in range(FEWEST):
        yield drop(first) + first


def written(x: Tensor) -> Found:
    for _ in range(FEWEST):
        yield drop(x).add_(1)


def taken_apart(x: Tensor) -> Found:
    """Operations with several results are left alone, and what comes of them."""
    for _ in range(FEWEST):
        yield drop(x).chunk(2, 1)[0].cos()


GROUPS: dict[str, tuple[Callable[[Tensor], Found], set[str]]] = {
    "a loop": (passes, {"dropout", "mul", "cos"}),
    "too few passes": (lambda x: passes(x, FEWEST - 1), set()),
    "other values in each": (scaled, set()),
    "other numbers in each": (scaled_later, {"dropout"}),
    "crossed": (crossed, {"dropout"}),
    "uneven": (uneven, {"dropout"}),
    "of the first": (of_the_first, {"dropout", "cos"}),
    "joined": (joined, {"dropout", "sin"}),
    "shared": (shared, {"dropout", "add"}),
    "written": (written, set()),
    "taken apart": (taken_apart, {"dropout"}),
}


class Loop(nn.Module):
    def __init__(self, each: Callable[[Tensor], Found]) -> None:
        super().__init__()
        self.each = each

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        return list(self.each(tensors[0]))


@pytest.mark.parametrize("name", GROUPS)
def test_what_runs_as_one_is_found(name: str) -> None:
    each, wanted = GROUPS[name]
    graph = capture(Loop(each), [torch.ones(3, 4)], [TensorSpec(name="x", dtype="float32", shape=("batch", 4))]).graph
    found = find_passes(graph, reached_by(graph, [draw.node for draw in find_draws(graph)]))
    assert {operation_of(node) for node in found} == wanted
    order = list(graph.nodes)
    for node, group in found.items():
        assert len(group) == FEWEST
        assert node in group
        assert sorted(group, key=order.index) == list(group)
