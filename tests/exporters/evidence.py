"""Hold an exported construct against eager PyTorch with torch's own generator, by the statistics of ``moments``.

The mask function and the rewrite are compared with the numpy reference elsewhere, value by value; what this adds is
that the whole of it has the distribution that torch gives. Nothing is shared but the module.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporters.export import ExportResult, export_module
from tests.exporters.constructs import Construct
from tests.exporters.test_monte_carlo import clients, names_of
from tests.moments import Comparison, compare

__all__ = ["DRAWS", "Evidence", "drawn", "eager", "exported", "gather"]

DRAWS = 20_000
SHARED_DRAWS = 5_000
"""Where eager PyTorch needs a call for each draw."""

FEATURES = 5
ROW_IDS = np.array([7, 8, 2**40], np.int64)

Values = NDArray[np.float64]
MaskMode = Literal["independent", "shared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The sites of a construct (kinds, in order) and a comparison for each format."""

    sites: tuple[str, ...]
    comparisons: dict[str, Comparison]


def rows(dtype: str) -> NDArray[np.floating]:
    """Three rows, the first two of which are equal: whatever they share or not is the doing of the masks."""
    one, other = np.random.default_rng(4).standard_normal((2, 6))
    return np.stack([one, one, other]).astype(dtype)


def gather(construct: Construct, path: Path) -> Evidence:
    torch.manual_seed(0)
    module = construct.build().eval()
    result = exported(construct, module, path)
    theirs = eager(construct, module)
    assert result.manifest.monte_carlo is not None
    comparisons = {name: compare(ours, theirs) for name, ours in drawn(construct, result, len(theirs)).items()}
    return Evidence(sites=tuple(site.kind for site in result.manifest.monte_carlo.sites), comparisons=comparisons)


def exported(construct: Construct, module: nn.Module, path: Path, **options: str) -> ExportResult:
    return export_module(
        module,
        path / "artifact",
        inputs=[construct.input],
        method=construct.method,
        mc_draws=3,
        keep_draws=True,
        **options,
    )  # type: ignore[arg-type]


def drawn(construct: Construct, result: ExportResult, draws: int) -> dict[str, Values]:
    """(draws, dimensions) of each format, called as a client does."""
    (spec,) = result.manifest.inputs
    names = [name for name in names_of(result) if name.endswith(".draws")]
    found = {}
    for format_name, client in clients(result.path, names_of(result)).items():
        got = client({spec.name: rows(spec.dtype)}, sample_ids=ROW_IDS.copy(), seed=11, draws=draws)
        found[format_name] = _dimensions([np.swapaxes(got[name], 0, 1) for name in names])
    return found


def eager(construct: Construct, module: nn.Module) -> Values:
    """(draws, dimensions) of the module itself in training mode; all draws in one call where rows are independent."""
    call: Callable[[Tensor], object] = module if construct.method == "forward" else lambda x: module.predict_step(x, 0)
    x = torch.from_numpy(rows(construct.input.partition(":")[2].partition("[")[0]))
    module.train()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            child.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(99)
            if construct.shared:
                passes = [_tensors(call(x)) for _ in range(SHARED_DRAWS)]
                return _dimensions([torch.stack(each).numpy() for each in zip(*passes, strict=True)])
            found = _tensors(call(x.repeat(DRAWS, *[1] * (x.ndim - 1))))
            return _dimensions([value.view(DRAWS, len(x), *value.shape[1:]).numpy() for value in found])
    finally:
        module.eval()


def _tensors(found: object) -> list[Tensor]:
    return list(found.values()) if isinstance(found, dict) else [found]  # type: ignore[list-item]


def _dimensions(outputs: list[NDArray[np.floating]]) -> Values:
    """(draws, rows * features) of outputs (draws, rows, ...); the first features of each row stand for the rest."""
    draws, count = outputs[0].shape[:2]
    flat = np.concatenate([output.reshape(draws, count, -1) for output in outputs], axis=2)
    return np.asarray(flat[..., :FEATURES].reshape(draws, -1), np.float64)
