"""Which operations of a graph draw: those that give something else when they are run a second time."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from exporters.capture.graph import quiet
from exporters.noise.sites import draws_random, find_draws

P = 0.5

SWITCHED: dict[str, Callable[..., Tensor]] = {
    "dropout": F.dropout, "feature_dropout": F.dropout2d, "alpha_dropout": F.alpha_dropout,
    "feature_alpha_dropout": F.feature_alpha_dropout,
}  # fmt: skip


def attention(dropout_p: float) -> Callable[[Tensor], Tensor]:
    return lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=dropout_p)


class Each(nn.Module):
    def __init__(self, called: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.called = called

    def forward(self, x: Tensor) -> Any:
        return self.called(x)


def switched(p: float, train: bool) -> dict[str, Callable[[Tensor], Any]]:
    """In place, too: of a copy, since what is given is not to change."""
    return {
        f"{name}{'_' if inplace else ''}, p {p}, train {train}": lambda x, function=function, inplace=inplace: function(
            x * 1, p, train, inplace
        )
        for name, function in SWITCHED.items()
        for inplace in (False, True)
    }


def recurrent(layers: int, dropout: float, train: bool) -> dict[str, Callable[[Tensor], Any]]:
    options: dict[str, Any] = {"num_layers": layers, "dropout": dropout if layers > 1 else 0.0}
    networks = {
        "lstm": nn.LSTM(4, 4, **options), "gru": nn.GRU(4, 4, **options), "tanh": nn.RNN(4, 4, **options),
        "relu": nn.RNN(4, 4, nonlinearity="relu", **options),
    }  # fmt: skip
    for network in networks.values():
        network.dropout = dropout  # As torch lets it be with a single layer, with a warning.
        for weight in network.parameters():
            nn.init.constant_(weight, 0.1)
    return {
        f"{name} of {layers}, dropout {dropout}, train {train}": each.train(train) for name, each in networks.items()
    }


CALLS: dict[str, Callable[[Tensor], Any]] = {
    **switched(P, True), **switched(P, False), **switched(0.0, True),
    **recurrent(2, P, True), **recurrent(2, P, False), **recurrent(2, 0.0, True), **recurrent(1, P, True),
    "attention that drops": attention(P),
    "attention that does not": attention(0.0),
    "rrelu, train": lambda x: F.rrelu(x - 9, training=True),
    "rrelu": lambda x: F.rrelu(x - 9),
    "rand_like": torch.rand_like,
    "normal_": lambda x: torch.empty_like(x).normal_(),
    "cos": torch.cos,
}  # fmt: skip


def graph_of(called: Callable[[Tensor], Any]) -> fx.GraphModule:
    module = called if isinstance(called, nn.Module) else Each(called)
    with quiet():
        captured: Any = torch.export.export(module, (torch.ones(5, 3, 4),), strict=False).module()
    assert isinstance(captured, fx.GraphModule)
    return captured


def run(module: fx.GraphModule, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    found = fx.Interpreter(module).run(torch.ones(5, 3, 4))
    return [each for each in torch.utils._pytree.tree_leaves(found) if isinstance(each, Tensor)]


@pytest.mark.parametrize("name", CALLS)
def test_an_operation_draws_where_another_seed_gives_something_else(name: str) -> None:
    module = graph_of(CALLS[name])
    differs = not all(map(torch.equal, run(module, 1), run(module, 2)))
    assert any(map(draws_random, module.graph.nodes)) == differs


class Chooses(nn.Module):
    """Draws if the first number is above 0, and after ``times`` such questions."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Any:
        return self.asked(x, self.times)

    def asked(self, x: Tensor, times: int) -> Any:
        if not times:
            return F.dropout(x, P)
        return torch.cond(x[0, 0, 0] > 0, lambda y: self.asked(y, times - 1), lambda y: y * 1, (x,))


class Inside(nn.Module):
    def __init__(self, times: int, grad: bool) -> None:
        super().__init__()
        self.inner, self.grad = Chooses(times), grad

    def forward(self, x: Tensor) -> Any:
        with torch.enable_grad() if self.grad else contextlib.nullcontext():
            return self.inner(x * 2)


@pytest.mark.parametrize(
    ("times", "grad", "operation"),
    [
        (1, False, "dropout in a block of torch.cond"),
        (2, False, "dropout in a block of torch.cond"),
        (0, True, "dropout in a block of torch.enable_grad"),
        (1, True, "dropout in a block of torch.cond"),
    ],
)
def test_draws_in_blocks_are_of_no_kind_and_of_the_module_whose_code_they_are(
    times: int, grad: bool, operation: str
) -> None:
    with torch.no_grad():
        graph = graph_of(Inside(times, grad)).graph
    (found,) = find_draws(graph)
    assert (found.module, found.operation, found.kind, found.p) == ("inner", operation, None, None)
