"""Modules whose randomness is made by hand: every supported operation, in training mode only."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests.exporters.models import Inner

Function = Callable[[nn.Module, Tensor], Tensor]


def drop_path(_owner: nn.Module, x: Tensor, keep: float = 0.8) -> Tensor:
    """Stochastic depth by ``bernoulli_`` on new memory, one number for each row."""
    return x + x.cos() * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)


def floor_path(_owner: nn.Module, x: Tensor, keep: float = 0.7) -> Tensor:
    """Stochastic depth by rounding down."""
    return x.cos() / keep * (keep + torch.rand(x.shape[0], 1, dtype=x.dtype, device=x.device)).floor_() + x


def part_of_memory(_owner: nn.Module, x: Tensor) -> Tensor:
    """Noise is written into a part of a tensor, and the whole of it is read."""
    memory = x.new_zeros(x.shape[0], 6)
    memory[:, 1:4].uniform_(2, 3)
    return x * memory


def without_gradient(_owner: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        mask = torch.rand_like(x).ge(0.3)
    return x * mask / 0.7


FUNCTIONS: dict[str, Function] = {
    "torch.rand(shape)": lambda m, x: x * torch.rand(x.shape),
    "torch.rand_like": lambda m, x: x + torch.rand_like(x),
    "Tensor.uniform_": lambda m, x: x + torch.empty_like(x).uniform_(-1, 2),
    "torch.randn": lambda m, x: x + torch.randn(x.shape[0], 6),
    "torch.randn_like": lambda m, x: x + 0.1 * torch.randn_like(x),
    "Tensor.normal_": lambda m, x: x * torch.empty_like(x).normal_(1, 0.5),
    "torch.normal(number, number, size)": lambda m, x: x + torch.normal(1.0, 2.0, (x.shape[0], 6)),
    "torch.normal(mean, number)": lambda m, x: torch.normal(x, 0.5),
    "torch.normal(number, std)": lambda m, x: torch.normal(1.0, x.abs()),
    "torch.normal(mean, std)": lambda m, x: torch.normal(x, torch.ones(6)),
    "torch.bernoulli(p)": lambda m, x: torch.bernoulli(x.sigmoid()),
    "torch.bernoulli(x, number)": lambda m, x: x * torch.bernoulli(x, 0.3),
    "Tensor.bernoulli_(number)": lambda m, x: x * torch.empty_like(x).bernoulli_(0.5) / 0.5,
    "Tensor.bernoulli_(p)": lambda m, x: x * torch.empty_like(x).bernoulli_(x.sigmoid()),
    "Tensor.bernoulli_ on bool": lambda m, x: x.masked_fill(torch.empty_like(x, dtype=torch.bool).bernoulli_(0.4), 0.0),
    "Tensor.exponential_": lambda m, x: x + torch.empty_like(x).exponential_(2.0),
    "F.gumbel_softmax": lambda m, x: F.gumbel_softmax(x, tau=0.7),
    "F.gumbel_softmax(hard=True)": lambda m, x: F.gumbel_softmax(x, hard=True),
    "F.rrelu": lambda m, x: F.rrelu(x, training=True),
    "F.rrelu(inplace=True)": lambda m, x: F.rrelu(x * 2, 0.1, 0.9, training=True, inplace=True),
    "drop path by bernoulli_": drop_path,
    "drop path by rand and floor": floor_path,
    "a mask from rand_like": lambda m, x: x * (torch.rand_like(x) > 0.25).float() / 0.75,
    "noise in a part of a tensor": part_of_memory,
    "noise in no_grad": without_gradient,
    "torch.distributions.Normal": lambda m, x: torch.distributions.Normal(x, 1.0, validate_args=False).rsample(),
    "nn.init.uniform_": lambda m, x: x * nn.init.uniform_(torch.empty_like(x)),
}
"""Name of the operation -> a function (owner, (batch, 6)) that gives (batch, 6)."""


class Noisy(nn.Module):
    """Each function on its own output, and off in evaluation."""

    def __init__(self, functions: dict[str, Function]) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.names = list(functions)
        self.inner = nn.ModuleList(Inner(switched(function)) for function in functions.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.norm(self.body(x))
        return {f"o{index}": inner(hidden) for index, inner in enumerate(self.inner)}


def switched(function: Function) -> Function:
    return lambda owner, x: function(owner, x) if owner.training else x.clone()


class Autoencoder(nn.Module):
    """Noise that is on in evaluation too, a dropout that is not, and more outputs in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread, self.drop, self.back = (
            nn.Linear(6, 4),
            nn.Linear(6, 4),
            nn.Dropout(0.3),
            nn.Linear(4, 6),
        )

    def forward(self, x: Tensor) -> Any:
        mean, spread = self.mean(x), self.spread(x)
        code = mean + torch.randn_like(spread) * (0.5 * spread).exp()
        out = self.back(self.drop(code))
        return (out, mean, spread) if self.training else out


class HandMadeHeads(nn.Module):
    """Heads folded behind the batch, and a mask that ``rand`` makes in the folded shape."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        tokens = self.body(x).view(batch, 3, 2, 4).transpose(1, 2).reshape(batch * 2, 3, 4)
        weights = torch.softmax(tokens @ tokens.transpose(1, 2), -1)
        weights = weights * (torch.rand(weights.shape) > 0.3) / 0.7
        return self.head((weights @ tokens).view(batch, 2, 3, 4).mean(2).reshape(batch, 8))


class HandMadeSteps(nn.Module):
    """Steps folded before the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        hidden = self.body(torch.stack([x, x * 2, x + 1]).reshape(3 * batch, 6))
        noise = torch.empty_like(hidden).normal_().mul(0.3).exp()
        return self.head(hidden * noise).view(3, batch, 3).mean(0)


class KeptNoise(nn.Module):
    """Weights with noise that each call fills into buffers, as the layers of Bayesian networks do it."""

    mean: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("mean", torch.zeros(8, 6))
        self.register_buffer("spread", torch.zeros(4, 8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x, self.body.weight + 0.2 * self.mean.data.normal_(), self.body.bias)
        self.spread.uniform_(-1, 1).mul_(2)
        hidden = F.linear(torch.tanh(hidden), self.head.weight * self.spread, self.head.bias)
        return hidden + self.mean.data.normal_()[:4, 0]
