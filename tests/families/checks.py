"""What must hold for every family: its sites, real spread, and rows that do not depend on their company."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from exporters.export import ExportResult, export_module
from exporters.ranges import Range

Arrays = dict[str, np.ndarray]
Client = Callable[..., Arrays]

DRAWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A module with its inputs, and the sites (module, kind) that a reader of its code expects."""

    build: Callable[[], nn.Module]
    inputs: tuple[str, ...]
    sites: tuple[tuple[str, str], ...]
    feeds: Callable[[int, np.random.Generator], Arrays]
    ranges: Mapping[str, Range] | None = None


def clients(result: ExportResult) -> dict[str, Client]:
    """The two files called as somebody without deploykit calls them."""
    names = [output.name for output in result.manifest.outputs]
    session = onnxruntime.InferenceSession(result.path / "model.onnx", providers=["CPUExecutionProvider"])
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit.load"):
        module = torch.jit.load(result.path / "model.torchscript.pt")

    def onnx(feeds: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, feeds), strict=True))

    def torchscript(feeds: Arrays) -> Arrays:
        found = module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        return {name: value.numpy() for name, value in found.items()}

    return {"onnx": onnx, "torchscript": torchscript}


def export(family: Family, path: Path, **options: Any) -> ExportResult:
    """Export in evaluation mode and check that the module comes back as it was."""
    torch.manual_seed(0)
    module = family.build().eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    result = export_module(module, path, inputs=family.inputs, ranges=family.ranges, **options)
    assert not any(child.training for child in module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    return result


def check_family(family: Family, tmp_path: Path) -> ExportResult:
    """Export with draws, which compares with the eager module draw by draw, and then use the files."""
    result = export(family, tmp_path / "a", mc_draws=DRAWS, keep_draws=True)
    monte_carlo = result.manifest.monte_carlo
    assert monte_carlo is not None
    assert [(site.module, site.kind) for site in monte_carlo.sites] == list(family.sites)
    assert {record.format for record in result.manifest.parity} == {"onnx", "torchscript"}
    # Neither a batch size nor other sizes that the export has tried.
    feeds = family.feeds(5, np.random.default_rng(3))
    found = {name: client(feeds) for name, client in clients(result).items()}
    drawn = [name for name in found["onnx"] if name.endswith(".draws")]
    assert drawn
    for name in drawn:
        values = found["onnx"][name]
        assert values.shape[:2] == (5, DRAWS)
        assert np.isfinite(values).all()
        assert (values.std(1).reshape(5, -1).max(1) > 1e-4 * np.abs(values).max()).all(), "every row must vary"
        _close(found["torchscript"][name], values)
    for client in clients(result).values():
        _check_rows_alone(client, feeds, drawn)
    return result


def _check_rows_alone(client: Client, feeds: Arrays, drawn: Sequence[str]) -> None:
    ids = np.array([2**41, 7, 0, 90_000, 12], dtype=np.int64)
    together = client({**feeds, "sample_ids": ids})
    for row in (0, 3):
        alone = client({name: array[row : row + 1] for name, array in {**feeds, "sample_ids": ids}.items()})
        for name in drawn:
            _close(alone[name][0], together[name][row])


def _close(got: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))
