"""How many rows should go through the model in one call with 50 draws, and what ``deploykit.passes`` chooses.

The draws of a row multiply its activations, so that a batch of rows soon leaves the cache; too few rows a call pay the
cost of a call, and read the weights for little work. Measured in one process on one thread: milliseconds per row of the
same rows in calls of different sizes, interleaved, for three models of different shape.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import interleaved, save, spread, workplace
from deploykit.artifact import Artifact
from deploykit.passes import rows_per_call
from exporters.export import export_module
from runners.onnx_runner import OnnxRunner

__all__ = ["main"]

DRAWS, BATCH, TARGET = 50, 256, 1.1


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.layers(x).mean(1))
        return found


def _mlp() -> nn.Module:
    hidden = [nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*hidden, nn.Linear(256, 10))


def _convnet() -> nn.Module:
    """The network of PyTorch's MNIST example."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, the shape of its row, the rows of a trial, and the numbers of rows per call to try."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rows: int
    sizes: tuple[int, ...]
    trials: int


CASES: Mapping[str, Case] = {
    "mlp": Case(build=_mlp, shape=(64,), rows=320, sizes=(1, 2, 4, 8, 16, 32, 64), trials=15),
    "convnet": Case(build=_convnet, shape=(1, 28, 28), rows=64, sizes=(1, 2, 4, 8, 16, 32, 64), trials=7),
    "encoder": Case(build=_Encoder, shape=(64, 256), rows=8, sizes=(1, 2, 4, 8), trials=5),
}


def main() -> None:
    with workplace() as place:
        cases = {name: measure(place / name, case) for name, case in CASES.items()}
    save("rows_per_call", draws=DRAWS, threads=1, cases=cases, target={"chosen_over_best": TARGET})


def measure(path: Path, case: Case) -> dict[str, Any]:
    torch.manual_seed(0)
    spec = f"x:float32[batch,{','.join(map(str, case.shape))}]"
    manifest = export_module(
        case.build().eval(), path, inputs=[spec], mc_draws=DRAWS, task="classification", formats=["onnx"]
    ).manifest
    assert manifest.monte_carlo is not None
    row_bytes = manifest.monte_carlo.row_bytes
    chosen = rows_per_call(row_bytes, DRAWS, BATCH, on_cpu=True)
    sizes = sorted({*case.sizes, min(chosen, case.rows)})
    rows = np.random.default_rng(0).normal(size=(case.rows, *case.shape)).astype(np.float32)
    with Artifact.open(path) as artifact, OnnxRunner(artifact, threads=1) as runner:
        trials = interleaved(case.trials, *(partial(_ms_per_row, runner, rows, size) for size in sizes))
    found = {size: spread(values) for size, values in zip(sizes, trials, strict=True)}
    best = min(one["median"] for one in found.values())
    return {
        "row_bytes": row_bytes,
        "chosen": chosen,
        "chosen_over_best": found[min(chosen, case.rows)]["median"] / best,
        "ms_per_row": found,
    }


def _ms_per_row(runner: OnnxRunner, rows: np.ndarray[Any, Any], size: int) -> float:
    began = perf_counter()
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        runner.predict({"x": part}, sample_ids=np.arange(start, start + len(part)))
    return (perf_counter() - began) / len(rows) * 1e3


if __name__ == "__main__":
    main()
