"""Models of the benchmarks, exported with random weights."""

from pathlib import Path

import torch
from torch import nn

from exporters.export import export_module

__all__ = ["export_mlp"]


def export_mlp(path: Path, *, width: int, depth: int, mc_draws: int | None = None) -> Path:
    """An MLP of 64 inputs and 10 outputs, exported to both formats."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(64, width), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.5)]
    module = nn.Sequential(*layers, nn.Linear(width, 10))
    return export_module(module, path, inputs=["input:float32[batch,64]"], mc_draws=mc_draws).path
