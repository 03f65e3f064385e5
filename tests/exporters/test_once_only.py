"""What is the same in every draw runs once, and the passes of a loop that the user wrote run as one.

Counted in the files: how many matrix products there are, and how many rows each of them sees.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from exporters.export import ExportResult, export_module
from tests.exporters.test_monte_carlo import SPEC, clients, names_of, oracle

ROWS, PASSES = 3, 4


class Loop(nn.Module):
    """``body`` before the loop's dropout, ``head`` behind it."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=inplace), nn.BatchNorm1d(8), nn.Dropout(0.1))
        self.drop, self.head = nn.Dropout(0.5, inplace=inplace), nn.Linear(8, 3)

    def one_pass(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.body(x)))

    def forward(self, x: Tensor) -> Tensor:
        self.drop.train()
        return torch.stack([self.one_pass(x) for _ in range(PASSES)]).mean(0)


class Documented(Loop):
    """As in Lightning's documentation: the output is dropped, in ``predict_step``."""

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.drop.train()
        return torch.vstack([self.drop(self.head(self.body(batch))).unsqueeze(0) for _ in range(PASSES)]).mean(dim=0)


class TwoSites(Loop):
    def one_pass(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.body(x))
        return self.head(self.drop(F.gelu(hidden)) + hidden)


class DropBefore(Loop):
    """A draw that all passes share."""

    def forward(self, x: Tensor) -> Tensor:
        self.drop.train()
        shared = self.drop(x)
        return torch.stack([self.one_pass(shared) for _ in range(PASSES)], dim=1).mean(1)


class Nested(Loop):
    """A loop in a loop: right, although the passes run one by one unless the inner ones depend on each other."""

    def one_pass(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.body(x))
        return sum(self.head(self.drop(hidden)) for _ in range(2)) / 2  # type: ignore[return-value]


class Chained(Loop):
    """Each pass goes on from the one before, so that none can run beside another."""

    def forward(self, x: Tensor) -> Tensor:
        self.drop.train()
        hidden = self.body(x)
        for _ in range(PASSES):
            hidden = self.drop(hidden) + 1
        return self.head(hidden)


class Sized(Loop):
    """Shape arithmetic on the batch size inside of the loop."""

    def one_pass(self, x: Tensor) -> Tensor:
        dropped = self.drop(self.body(x).view(x.shape[0] * 2, 4))
        return self.head(dropped.view(dropped.shape[0] // 2, -1))


def exported(module: nn.Module, path: Path) -> ExportResult:
    method = "predict_step" if isinstance(module, Documented) else "forward"
    spec = SPEC.replace("x", "batch", 1) if method == "predict_step" else SPEC
    return export_module(module.eval(), path / "a", inputs=[spec], method=method)


def products(result: ExportResult, path: Path, inputs: dict[str, np.ndarray]) -> list[int]:
    """How many rows every matrix product of the file sees."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(path / "profile")
    session = onnxruntime.InferenceSession(result.path / "model.onnx", options, providers=["CPUExecutionProvider"])
    session.run(None, inputs)
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event["name"].endswith("kernel_time")]
    dense = [event for event in kernels if event["args"]["op_name"] in ("Gemm", "MatMul", "FusedGemm", "FusedMatMul")]
    return sorted(int(np.prod(event["args"]["input_type_shape"][0]["float"][:-1])) for event in dense)


LOOPS: list[tuple[type[Loop], list[int]]] = [
    (Loop, [ROWS, PASSES * ROWS]),
    (Documented, [ROWS, ROWS]),
    (TwoSites, [ROWS, PASSES * ROWS]),
    (DropBefore, [ROWS, PASSES * ROWS]),
    (Sized, [ROWS, PASSES * ROWS]),
    (Chained, [ROWS, ROWS]),
]
"""With the rows that each matrix product sees, whether the dropout works in place or not."""
NESTED = [(Nested, [ROWS, *2 * PASSES * [ROWS]], False), (Nested, [ROWS, *2 * [PASSES * ROWS]], True)]
IN_PLACE = [
    pytest.param(kind, rows, True, marks=() if kind is Loop else pytest.mark.exhaustive) for kind, rows in LOOPS
]


@pytest.mark.parametrize(
    ("kind", "rows", "inplace"),
    [*((kind, rows, False) for kind, rows in LOOPS), *IN_PLACE, *NESTED],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value) if isinstance(value, bool) else "",
)
def test_the_passes_of_a_loop_run_as_one(kind: type[Loop], rows: list[int], inplace: bool, tmp_path: Path) -> None:
    """... and keep their meaning."""
    torch.manual_seed(0)
    module = kind(inplace)
    result = exported(module, tmp_path)
    name = result.manifest.inputs[0].name
    ids, x = np.array([7, 0, 2**33], np.int64), np.random.default_rng(0).standard_normal((ROWS, 6)).astype(np.float32)
    assert products(result, tmp_path, {name: x}) == rows

    class Call(nn.Module):
        def forward(self, batch: Tensor) -> Any:
            return module.predict_step(batch, 0) if isinstance(module, Documented) else module(batch)

    wanted = oracle(Call(), x.copy(), ids, 3, range(1))[0]  # a dropout in place writes into its input
    for client in clients(result.path, names_of(result)).values():
        got = client({name: x}, sample_ids=ids, seed=3)["output"]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * max(1, np.abs(wanted).max()))


def test_a_loop_under_draws_multiplies(tmp_path: Path) -> None:
    """With --mc-draws the user's passes and ours run together, and each draw has masks of its own."""
    module = Loop().eval()
    module.body[3].p = 0.0
    result = export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=4, keep_draws=True)
    x = np.random.default_rng(0).standard_normal((ROWS, 6)).astype(np.float32)
    assert products(result, tmp_path, {"x": x}) == [ROWS, 4 * PASSES * ROWS]
    wanted = oracle(module, x, np.arange(ROWS), 0, range(4))
    for client in clients(result.path, names_of(result)).values():
        np.testing.assert_allclose(np.swapaxes(client({"x": x})["output.draws"], 0, 1), wanted, rtol=0, atol=1e-5)


def test_state_that_is_written_is_not_merged_away(tmp_path: Path) -> None:
    """Two reads of memory around a write are two values."""

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.head = nn.Dropout(0.5), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            scratch = torch.zeros_like(x)
            before = scratch + 1
            scratch[:, 0] = x[:, 0]
            after = scratch + 1
            other = torch.zeros_like(x) + 1
            return self.head(self.drop(before * 2 + after * 3 + other))

    module = Written()
    result = export_module(module.eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3, keep_draws=True)
    x = np.random.default_rng(0).standard_normal((ROWS, 6)).astype(np.float32)
    wanted = oracle(module.train(), x, np.arange(ROWS), 0, range(3))
    for client in clients(result.path, names_of(result)).values():
        np.testing.assert_allclose(np.swapaxes(client({"x": x})["output.draws"], 0, 1), wanted, rtol=0, atol=1e-5)
