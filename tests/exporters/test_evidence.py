"""Every construct has torch's own distribution, and exports that are wrong on purpose are told from it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.exporters import evidence
from tests.exporters.constructs import CONSTRUCTS
from tests.exporters.constructs_table import PAGE, RESULT, page
from tests.moments import compare

ROWS = json.loads(RESULT.read_text(encoding="utf-8"))["constructs"]
MLP, SHARED = CONSTRUCTS["nn.Dropout"], CONSTRUCTS["nn.Dropout, one module called three times"]


def first_of_each() -> set[str]:
    """One construct of each group and kinds of sites; `make test` measures these, `make test-all` every one."""
    found: dict[tuple[str, frozenset[str]], str] = {}
    for row in ROWS:
        found.setdefault((row["group"], frozenset(row["sites"])), row["name"])
    return set(found.values())


def constructs() -> list[Any]:
    common = first_of_each()
    return [pytest.param(name, marks=() if name in common else pytest.mark.exhaustive) for name in CONSTRUCTS]


@pytest.mark.slow
@pytest.mark.parametrize("name", constructs())
def test_a_construct_has_the_distribution_of_eager_pytorch(name: str, tmp_path: Path) -> None:
    found = evidence.gather(CONSTRUCTS[name], tmp_path)
    assert found.sites
    assert set(found.comparisons) == {"onnx", "torchscript"}
    for format_name, comparison in found.comparisons.items():
        assert comparison.random, "eager PyTorch must draw"
        assert comparison.differs() == [], f"{format_name}: {comparison.largest:.1f}"


def test_the_table_of_constructs_is_that_of_the_tests() -> None:
    measured = json.loads(RESULT.read_text(encoding="utf-8"))
    assert [row["name"] for row in measured["constructs"]] == list(CONSTRUCTS)
    assert PAGE.read_text(encoding="utf-8") == page(measured)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """The exported multilayer perceptron and eager PyTorch's."""
    torch.manual_seed(0)
    module = MLP.build().eval()
    result = evidence.exported(MLP, module, tmp_path_factory.mktemp("mlp"))
    theirs = evidence.eager(MLP, module)
    return evidence.drawn(MLP, result, len(theirs))["onnx"], theirs


DEFECTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "a mean that is off by a tenth of a deviation": (lambda draws: draws + 0.1 * draws.std(0), "mean"),
    "a tenth too much spread": (lambda draws: draws.mean(0) + 1.1 * (draws - draws.mean(0)), "variance"),
    "no dropout at all": (lambda draws: np.broadcast_to(draws.mean(0), draws.shape), "variance"),
    "every draw twice": (lambda draws: draws[: len(draws) // 2].repeat(2, 0), "next"),
    "rows with the masks of each other": (
        lambda draws: np.concatenate([draws[:, :3], draws[:, :3], draws[:, 6:]], 1), "cross"
    ),
    "a draw and the next one that are alike": (lambda draws: (draws[:-1] + 0.1 * draws[1:]) / np.sqrt(1.01), "next"),
    "elements of a row without their dependence": (
        lambda draws: np.stack([np.roll(column, 17 * index) for index, column in enumerate(draws.T)], 1), "cross"
    ),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_seen(sides: tuple[np.ndarray, np.ndarray], defect: str) -> None:
    ours, theirs = sides
    assert compare(ours, theirs).differs() == []
    spoil, statistic = DEFECTS[defect]
    assert statistic in compare(spoil(ours), theirs).differs()


def test_masks_that_all_rows_share_are_told_from_independent_ones(tmp_path: Path) -> None:
    """A real export of the other mask mode: every row alone is right, and only the rows together are not."""
    torch.manual_seed(0)
    module = MLP.build().eval()
    result = evidence.exported(MLP, module, tmp_path, mask_mode="shared")
    theirs = evidence.eager(MLP, module)
    assert compare(evidence.drawn(MLP, result, len(theirs))["onnx"], theirs).differs() == ["cross"]


def test_two_sites_with_the_same_mask_are_told_from_two_of_their_own(tmp_path: Path) -> None:
    """What a common-subexpression pass does: eager PyTorch with a module that reuses its first mask."""

    class Merged(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            module = self.module
            hidden = torch.relu(module.body(x))
            once = module.drop(hidden)
            return module.head(module.drop(once + once))

    torch.manual_seed(0)
    module = SHARED.build().eval()
    result = evidence.exported(SHARED, module, tmp_path)
    merged = evidence.eager(SHARED, Merged(module))
    comparison = compare(evidence.drawn(SHARED, result, len(merged))["onnx"], merged)
    assert "variance" in comparison.differs()


def test_the_stated_power_and_false_alarms() -> None:
    """A shift of 0.083 deviations of one of 15 elements is seen 99 times in 100; equal sides never are."""
    generator = np.random.default_rng(0)
    seen = 0
    for _ in range(50):
        ours, theirs = generator.standard_normal((2, evidence.DRAWS, 15))
        assert compare(ours, theirs).differs() == []
        ours[:, 3] += 0.0833
        seen += "mean" in compare(ours, theirs).differs()
    assert seen >= 48
