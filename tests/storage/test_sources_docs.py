"""The page about sources is true: its blocks run from top to bottom, and each source gives the same predictions."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import deploykit
from deploykit.cli import main
from tests import handmade

PAGE = Path(__file__).parents[2] / "docs" / "sources.md"
BLOCKS = re.findall(r"^## (.*?)$|^```(python|sh)\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(3, 2)
    def forward(self, x):
        return self.last(x.mean((2, 3)))
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    handmade.build(folder / "model", "plain", ("onnx",))
    (folder / "photos.py").write_text(NET)
    torch.save({"last.weight": torch.ones(2, 3), "last.bias": torch.zeros(2)}, folder / "photos.pt")
    before = Path.cwd()
    os.chdir(folder)
    try:
        _run_blocks()
    finally:
        os.chdir(before)
    return folder


def _run_blocks() -> None:
    names: dict[str, Any] = {}
    for _, kind, text in BLOCKS:
        if kind == "python":
            exec(text, names)
        for line in text.splitlines() if kind == "sh" else ():
            words = shlex.split(line.replace("$PWD", str(Path.cwd())))
            assert words[0] == "deploykit"
            with pytest.raises(SystemExit) as ended:
                main(words[1:])
            assert ended.value.code == 0, line


def test_each_section_of_a_source_has_a_command() -> None:
    sections = {title for title, _, _ in BLOCKS if title}
    having, section = set(), ""
    for title, kind, _ in BLOCKS:
        section = title or section
        if kind == "sh":
            having.add(section)
    assert sections - having == {"Columns and inputs", "Speed"}


def test_the_same_rows_give_the_same_predictions_from_every_source(folder: Path) -> None:
    wanted = handmade.expected("plain", {"x": np.load(folder / "rows.npy")})["logits"]
    runs = sorted(path.name for path in folder.glob("from-*") if path.name not in ("from-images", "from-pattern"))
    assert len(runs) >= 10
    for name in runs:
        merged = np.load(deploykit.merge(folder / name, folder / f"{name}.npz"))
        np.testing.assert_allclose(merged["logits"], wanted, rtol=1e-5, atol=1e-6)
        if "id" in merged:
            np.testing.assert_array_equal(merged["id"], np.arange(1000))


def test_the_figures_are_those_of_the_committed_results() -> None:
    results = json.loads((PAGE.parents[1] / "benchmarks" / "results" / "sources.json").read_text())["results"]
    assert results
    for name, found in results.items():
        cells = [f"{found[side]['rows_per_s'] / 1e6:.2f}" for side in ("ours", "bare", "arrays")]
        cells += [f"{found['ours_over_bare']:.2f}", f"{found['ours_over_arrays']:.2f}"]
        assert f"| {name} | {' | '.join(cells)} |" in PAGE.read_text()


def test_images_go_through_the_recorded_preprocessing(folder: Path) -> None:
    assert deploykit.open_artifact(folder / "photo-model").manifest.preprocessing == {
        "x": {
            "kind": "image", "resize": [36], "crop": [32, 32], "channels": "RGB", "layout": "CHW", "scale": 255.0,
            "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear",
        }
    }  # fmt: skip
    one = np.load(deploykit.merge(folder / "from-images", folder / "images.npz"))["output"]
    assert one.shape == (10, 2)
    assert (np.abs(one) < 3).all()
    two = np.load(deploykit.merge(folder / "from-pattern", folder / "pattern.npz"))["output"]
    np.testing.assert_array_equal(one, two)
