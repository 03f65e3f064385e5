"""Train the demo's network: a plain torch loop of a few seconds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

__all__ = ["Recipe", "Trained", "probabilities", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train. ``hyperparameters`` are the network's constructor arguments."""

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 4e-3
    hyperparameters: Mapping[str, Any] = field(
        default_factory=lambda: {"channels": 16, "hidden": 128, "classes": 10, "p_features": 0.2, "p_hidden": 0.3}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A network in eval mode, and all that a checkpoint keeps beside it."""

    network: "nn.Module"
    optimizer: "Optimizer"
    scheduler: "LRScheduler"
    recipe: Recipe
    batches_per_epoch: int


def train(
    images: NDArray[np.float32], labels: NDArray[np.int64], *, seed: int, recipe: Recipe | None = None
) -> Trained:
    """Train a new network on images (n, 1, 8, 8) float32 with labels (n,) int64.

    The same seed gives the same network on the same machine. torch's random state and number of threads are left as
    they were.
    """
    import torch

    from deploykit.demo.network import DigitsNet

    chosen = Recipe() if recipe is None else recipe
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitsNet(**chosen.hyperparameters)
        optimizer = torch.optim.Adam(network.parameters(), lr=chosen.learning_rate, weight_decay=1e-4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=chosen.epochs)
        inputs, targets = torch.from_numpy(images), torch.from_numpy(labels)
        for _ in range(chosen.epochs):
            batches = torch.split(torch.randperm(len(inputs)), chosen.batch_size)
            for rows in batches:
                _step(network, optimizer, inputs[rows], targets[rows])
            scheduler.step()
    return Trained(
        network=network.eval(),
        optimizer=optimizer,
        scheduler=scheduler,
        recipe=chosen,
        batches_per_epoch=len(batches),
    )


def _step(network: "nn.Module", optimizer: "Optimizer", inputs: "Tensor", targets: "Tensor") -> None:
    import torch
    from torch.nn import functional

    optimizer.zero_grad()
    torch.autograd.backward(functional.cross_entropy(network(inputs), targets))
    optimizer.step()


def probabilities(network: "nn.Module", images: NDArray[np.float32]) -> NDArray[np.float32]:
    """One pass of the network in the mode it is in: probabilities (n, classes) float32."""
    import torch

    with torch.inference_mode():
        found: NDArray[np.float32] = network(torch.from_numpy(images)).softmax(dim=1).numpy()
    return found


@contextmanager
def _one_thread() -> Iterator[None]:
    """Operations this small take longer on several threads, and sums then depend on how many there are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
