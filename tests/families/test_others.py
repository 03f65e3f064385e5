"""Recurrent, segmentation, residual and graph models, and the forms of them that no exported file can hold."""

from pathlib import Path

import numpy as np
import pytest

from deploykit.errors import DeploykitError, ExportError, UsageError
from exporters.export import export_module
from tests.families import models
from tests.families.checks import Arrays, Family, check_family

pytestmark = [pytest.mark.slow, pytest.mark.families]


def token_rows(rows: int, generator: np.random.Generator) -> Arrays:
    return {"ids": generator.integers(0, 50, (rows, 21))}


def packed_rows(rows: int, generator: np.random.Generator) -> Arrays:
    return {**token_rows(rows, generator), "lengths": generator.integers(1, 22, rows)}


def images(rows: int, generator: np.random.Generator, height: int = 16, width: int = 16, channels: int = 1) -> Arrays:
    return {"image": generator.standard_normal((rows, channels, height, width)).astype(np.float32)}


def dense_graphs(rows: int, generator: np.random.Generator) -> Arrays:
    """Graphs of 10 nodes, each joined to itself."""
    adjacency = np.maximum(generator.integers(0, 2, (rows, 10, 10)), np.eye(10, dtype=np.int64))
    return {"x": generator.standard_normal((rows, 10, 5)).astype(np.float32), "adjacency": adjacency}


def edge_lists(rows: int, generator: np.random.Generator) -> Arrays:
    """Graphs of 9 nodes with up to 15 edges; the rest is padding."""
    return {
        "x": generator.standard_normal((rows, 9, 5)).astype(np.float32),
        "edges": generator.integers(0, 9, (rows, 2, 15)),
        "real": (np.arange(15) < generator.integers(2, 16, (rows, 1))).astype(np.float32),
    }


CHANNELS = tuple((f"{name}.3", "feature_dropout") for name in ("down", "middle", "bottom", "up.0", "up.1"))
RECURRENT = (("drop", "dropout"), ("encoder", "recurrent_dropout"), ("drop", "dropout"))
TOKENS, IMAGE = ("ids:int64[batch,steps]",), ("image:float32[batch,1,16,16]",)

FAMILIES = {
    "LSTM classifier": Family(
        build=models.LstmClassifier, inputs=TOKENS, sites=RECURRENT, feeds=token_rows, ranges={"ids": (0, 50)}
    ),
    "GRU classifier": Family(
        build=lambda: models.LstmClassifier("GRU"), inputs=TOKENS, sites=RECURRENT, feeds=token_rows,
        ranges={"ids": (0, 50)},
    ),
    "RNN classifier": Family(
        build=lambda: models.LstmClassifier("RNN"), inputs=TOKENS, sites=RECURRENT, feeds=token_rows,
        ranges={"ids": (0, 50)},
    ),
    "LSTM classifier over packed sequences": Family(
        build=models.PackedLstm, inputs=(*TOKENS, "lengths:int64[batch]"),
        sites=(("drop", "dropout"), ("encoder", "dropout"), ("drop", "dropout")), feeds=packed_rows,
        ranges={"ids": (0, 50), "lengths": (1, "steps+1")},
    ),
    "U-Net with transposed convolutions": Family(
        build=lambda: models.UNet(transposed=True), inputs=IMAGE, sites=CHANNELS, feeds=images
    ),
    "U-Net with interpolation, dynamic height and width": Family(
        build=lambda: models.UNet(transposed=False), inputs=("image:float32[batch,1,height,width]",), sites=CHANNELS,
        feeds=lambda rows, generator: images(rows, generator, 18, 11),
    ),
    "FPN": Family(build=models.Fpn, inputs=IMAGE, sites=(("drop", "feature_dropout"),) * 3, feeds=images),
    "ResNet with functional dropout": Family(
        build=models.ResNet, inputs=("image:float32[batch,3,16,16]",),
        sites=(("layers.0", "dropout"), ("layers.1", "dropout"), ("(root)", "dropout")),
        feeds=lambda rows, generator: images(rows, generator, channels=3),
    ),
    "GAT, dense": Family(
        build=models.DenseGat, inputs=("x:float32[batch,nodes,5]", "adjacency:int64[batch,nodes,nodes]"),
        sites=(("(root)", "dropout"),) * 2, feeds=dense_graphs, ranges={"adjacency": (0, 2)},
    ),
    "graph network on edge lists": Family(
        build=models.EdgeList,
        inputs=("x:float32[batch,nodes,5]", "edges:int64[batch,2,edges]", "real:float32[batch,edges]"),
        sites=(("(root)", "dropout"),) * 2, feeds=edge_lists, ranges={"edges": (0, "nodes")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name: str, tmp_path: Path) -> None:
    check_family(FAMILIES[name], tmp_path)


@pytest.mark.parametrize(
    ("build", "inputs", "error", "message"),
    [
        (
            lambda: models.UNet(transposed=True), ("image:float32[batch,1,height,width]",), ExportError,
            r"height // 2\) == \(2\*\(height // 4\)\).*declare the dimension as a number",
        ),
        (
            models.Fpn, ("image:float32[batch,1,height,width]",), ExportError,
            r"\(root\) \(models.py:\d+: .*F.interpolate\(above, scale_factor=2.0.*size of tensor a",
        ),
        (
            models.OneGraph, ("x:float32[batch,5]", "neighbour:int64[batch]"), ExportError,
            r"\(root\) \(aten.*\): rows of a batch would influence each other.*let a row be a whole graph",
        ),
        (
            models.OneGraphDense, ("x:float32[batch,5]", "adjacency:float32[batch,batch]"), UsageError,
            r"input adjacency.*has the batch dimension twice.*adjacency:float32\[batch,nodes,nodes\]",
        ),
    ],
)  # fmt: skip
def test_what_no_file_can_hold_is_refused_with_the_reason(
    build: type, inputs: tuple[str, ...], error: type[DeploykitError], message: str, tmp_path: Path
) -> None:
    # A neighbour that is row 0 is there at every batch size.
    ranges = {"neighbour": (0, 1)} if build is models.OneGraph else None
    with pytest.raises(error, match=message):
        export_module(build(), tmp_path / "a", inputs=inputs, ranges=ranges, mc_draws=4)
    assert list(tmp_path.iterdir()) == []
