"""What a capture keeps dynamic, and what it says about the rest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import deploykit
from deploykit.errors import DataError, ExportError, UsageError
from exporters.export import export_module
from tests.exporters.models import Wrapped
from tests.exporters.test_monte_carlo import clients, names_of


class Positions(nn.Module):
    """A table of 14 positions, and attention in which a padded row may attend to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(14, 6))

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        tokens = x + self.table[: x.shape[1]]
        mask = real[:, None, :].expand(-1, x.shape[1], -1)
        return F.scaled_dot_product_attention(tokens, tokens, tokens, mask, 0.3 if self.training else 0.0)


def test_bounds_on_both_sides_come_of_the_size_at_capture_which_is_told(tmp_path: Path) -> None:
    class Ways(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1) if 8 <= x.shape[1] < 16 else x.mean(1)

    result = export_module(Ways(), tmp_path / "a", inputs=["x:float32[batch,steps]"], formats=["torchscript"])
    assert result.notes == (
        "dimension steps: the module's code allows only sizes with min 8 and max 15; it was captured at 12, and an "
        "--example of a real size may allow others",
    )


def test_bounds_of_the_code_bound_the_dimension_and_rows_may_attend_to_nothing(tmp_path: Path) -> None:
    import onnxruntime

    inputs = ["x:float32[batch,steps,6]", "real:bool[batch,steps]"]
    result = export_module(Positions(), tmp_path / "a", inputs=inputs, mc_draws=4)
    assert result.manifest.tested["steps"] == (9, 12, 14)
    assert result.notes == ("dimension steps: the module's code allows only sizes with max 14",)
    assert result.manifest.bounds == {"steps": {"max": 14}}
    session = onnxruntime.InferenceSession(result.path / "model.onnx", providers=["CPUExecutionProvider"])
    x, real = np.ones((3, 5, 6), np.float32), np.ones((3, 5), bool)
    real[1] = False
    mean, std = session.run(["output.mean", "output.std"], {"x": x, "real": real})
    np.testing.assert_array_equal(mean[1], 0)
    assert (std[[0, 2]].max((1, 2)) > 0).all()


class LastSteps(nn.Module):
    """A forecast from the last five steps, each with a layer of its own behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(torch.relu(self.drop(self.first(x))[:, -5:]))
        return found


def test_a_part_of_the_steps_keeps_them_dynamic(tmp_path: Path) -> None:
    """Five steps themselves lie in memory in another way than five of more."""
    result = export_module(LastSteps(), tmp_path / "a", inputs=["x:float32[batch,steps,4]"], mc_draws=3)
    assert result.manifest.bounds == {"steps": {"min": 6}}
    assert result.manifest.tested["steps"] == (9, 12, 17)
    assert result.notes == ("dimension steps: the module's code allows only sizes with min 6",)


def test_rows_come_in_any_number(tmp_path: Path) -> None:
    class Pairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[0] == 2 else x

    with pytest.raises(ExportError, match="its code works only where batch != 2"):
        export_module(Pairs(), tmp_path / "a", inputs=["x:float32[batch,4]"])


class BranchOfSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * (0.1 if x.shape[0] < 100 else 0.5)


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_a_size_of_which_the_code_makes_something_else_is_refused(tmp_path: Path, runner: str) -> None:
    """The file holds the branch that was taken at export."""
    module, x = BranchOfSizes().eval(), np.ones((128, 6), np.float32)
    export_module(module, tmp_path / "a", inputs=["x:float32[batch,6]"])
    with deploykit.load(tmp_path / "a", runner=runner) as model:
        assert model.artifact.manifest.bounds == {"batch": {"max": 99}}
        wanted = module(torch.from_numpy(x[:99])).detach().numpy()
        np.testing.assert_allclose(model.predict(x[:99])["output"], wanted, rtol=1e-5)
        with pytest.raises(DataError, match="batch is 128, and the code of the model allows at most 99; give"):
            model.predict(x)
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(UsageError, match=r"batch size 256: .* allows at most 99; give another --batch-size"):
        deploykit.run(tmp_path / "a", tmp_path / "x.npy", tmp_path / "run", runner=runner, batch_size=256)
    assert not (tmp_path / "run").exists()
    deploykit.run(tmp_path / "a", tmp_path / "x.npy", tmp_path / "run", runner=runner)


class Pooled(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return F.avg_pool2d(F.max_pool2d(image, 2), 3, 2)


def test_a_pooling_that_leaves_a_rest_keeps_sizes_dynamic(tmp_path: Path) -> None:
    inputs = ["image:float32[batch,1,height,width]"]
    result = export_module(Pooled(), tmp_path / "a", inputs=inputs, formats=["torchscript"])
    assert {size % 2 for size in result.manifest.tested["height"]} == {0, 1}


class PlainAttention(nn.Module):
    """Masks of both kinds, no dropout; queries of padded rows may attend to nothing."""

    def forward(self, x: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        tokens = x[:, None].expand(-1, 2, -1, -1)
        mask = real[:, None, None].expand(-1, 1, x.shape[1], -1)
        added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        return tuple(F.scaled_dot_product_attention(tokens, tokens, tokens, each) for each in (mask, added))


def test_rows_that_attend_to_nothing_are_zeros_without_draws_too(tmp_path: Path) -> None:
    """The stock exporter gives them the mean of the values."""
    import onnxruntime

    inputs = ["x:float32[batch,steps,6]", "real:bool[batch,steps]"]
    result = export_module(PlainAttention(), tmp_path / "a", inputs=inputs, formats=["onnx"])
    session = onnxruntime.InferenceSession(result.path / "model.onnx", providers=["CPUExecutionProvider"])
    x, real = np.ones((2, 5, 6), np.float32), np.array([[True] * 5, [False] * 5])
    for found in session.run(None, {"x": x, "real": real}):
        np.testing.assert_allclose(found[0], 1, rtol=1e-6)
        np.testing.assert_array_equal(found[1], 0)


HEADLESS: dict[str, Callable[[Tensor, Tensor], dict[str, Any]]] = {
    "plain": lambda _x, _real: {},
    "causal": lambda _x, _real: {"is_causal": True},
    "scaled": lambda _x, _real: {"scale": 0.3},
    "mask of all rows": lambda x, _real: {"attn_mask": torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(-1)},
    "mask of each row": lambda _x, real: {"attn_mask": real[:, None]},
    "bias of each row": lambda x, real: {"attn_mask": (x[..., 0] * real)[:, None].expand(-1, x.shape[1], -1)},
}


class HeadlessAttention(nn.Module):
    """Attention as torch takes it too: (batch, steps, size), with no dimension for heads."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor, real: Tensor) -> dict[str, Tensor]:
        attend = F.scaled_dot_product_attention
        return {name: attend(self.drop(x), x, x * 2, **options(x, real)) for name, options in HEADLESS.items()}


@pytest.mark.parametrize("draws", [None, 3])
def test_attention_without_heads_exports(tmp_path: Path, draws: int | None) -> None:
    """The check of every export compares both files with the module at other sizes, rows that attend to nothing too."""
    inputs = ["x:float32[batch,steps,6]", "real:bool[batch,steps]"]
    result = export_module(HeadlessAttention(), tmp_path / "a", inputs=inputs, mc_draws=draws)
    assert set(result.manifest.formats) == {"onnx", "torchscript"}
    assert {output.source for output in result.manifest.outputs} == set(HEADLESS)
    assert result.max_error < 1e-5


class Steps(nn.Module):
    """Outputs and last states of a recurrent network, the batch first or second inside."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.cells = getattr(nn, kind)(6, 4, num_layers=2, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.cells.batch_first
        values, end = self.cells(x if first else x.transpose(0, 1))
        state = end[0] if isinstance(end, tuple) else end
        return (values if first else values.transpose(0, 1)).sum(1), state.transpose(0, 1)


@pytest.mark.parametrize(
    ("kind", "draws", "options"),
    [
        ("RNN", 3, {"dropout": 0.3, "bidirectional": True, "batch_first": True}),
        ("RNN", None, {"nonlinearity": "relu", "bias": False}),
        ("LSTM", None, {"bidirectional": True}),
        ("GRU", 3, {"dropout": 0.3, "bias": False, "batch_first": True}),
    ],
)
def test_recurrent_networks_keep_the_number_of_steps_dynamic(
    kind: str, draws: int | None, options: dict[str, Any], tmp_path: Path
) -> None:
    """The export compares both formats with torch at each of these sizes."""
    module = Steps(kind, **options)
    result = export_module(module, tmp_path / "a", inputs=["x:float32[batch,steps,6]"], mc_draws=draws)
    assert result.manifest.tested["steps"] == (9, 12, 17)
    assert {record.format for record in result.manifest.parity} == {"onnx", "torchscript"}


@pytest.mark.parametrize("draws", [None, 3])
def test_repeats_by_the_size_of_the_batch_are_exported(tmp_path: Path, draws: int | None) -> None:
    """Members of an ensemble, each with a scale of its own for all rows, which torch's exporter writes wrongly."""

    class Members(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scales, self.drop = nn.Parameter(torch.randn(4, 6)), nn.Dropout(0.3)

        def forward(self, x: Tensor) -> Tensor:
            rows = x.shape[0]
            inner = self.scales.T.repeat_interleave(rows, 1).T
            flat = self.scales[0, :2].repeat_interleave(rows).view(2, rows).T
            scaled = self.drop(x.repeat(4, 1)) * (self.scales.repeat_interleave(rows, 0) + inner)
            return torch.cat([scaled.view(4, rows, 6).mean(0), flat], 1)

    result = export_module(Members().eval(), tmp_path / "a", inputs=["x:float32[batch,6]"], mc_draws=draws)
    assert result.max_error < 1e-5


class Halves(nn.Module):
    """Needs an even size: it is halved and doubled again."""

    def forward(self, image: Tensor) -> Tensor:
        return image + F.interpolate(F.max_pool2d(image, 2), scale_factor=2.0)


def test_a_refusal_names_the_size_as_the_user_does(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"its code works only where width == \(2\*\(width // 2\)\); write it"):
        export_module(Halves(), tmp_path / "a", inputs=["image:float32[batch,1,4,width]"])


def test_a_size_that_becomes_a_number_is_told_in_one_condition(tmp_path: Path) -> None:
    module = Wrapped(lambda _, x: x[:, : int(x.shape[1] / 2)].sum(1))
    with pytest.raises(ExportError, match=r"its code works only where \(steps // 2\) == 6; write it without that size"):
        export_module(module, tmp_path / "a", inputs=["x:float32[batch,steps,6]"])


def at_random(owner: nn.Module, x: Tensor) -> Tensor:
    return x * 2 if owner.training and torch.rand([]) < 0.5 else F.dropout(x, 0.5, owner.training)


def test_a_refusal_names_the_module_and_the_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match=r"^inner \(models.py:\d+: return self.function\(self, x\)\).*layer drop"):
        export_module(Wrapped(at_random), tmp_path / "a", inputs=["x:float32[batch,6]"], mc_draws=4)
    assert capfd.readouterr().err == ""


def test_a_graph_whose_rows_are_nodes_is_refused_with_the_reason(tmp_path: Path) -> None:
    def neighbours(owner: nn.Module, x: Tensor) -> Tensor:
        dropped = F.dropout(x, 0.5, owner.training)
        return dropped + dropped.roll(1, 0)

    with pytest.raises(ExportError, match=r"rows of a batch would influence each other.*let a row be a whole graph"):
        export_module(Wrapped(neighbours), tmp_path / "a", inputs=["x:float32[batch,6]"], mc_draws=4)
    with pytest.raises(UsageError, match="has the batch dimension twice"):
        export_module(nn.Identity(), tmp_path / "a", inputs=["input:float32[batch,batch]"])


class ByLen(nn.Module):
    """Sizes as people ask for them, of the batch and of the steps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.reshape(len(x), -1, 2, 3).transpose(0, 1)
        assert len([x, x]) == 2
        return F.dropout(heads.reshape(len(heads), len(x), 6).transpose(0, 1), 0.5, self.training)


@pytest.mark.parametrize("draws", [None, 3])
def test_sizes_may_be_asked_for_with_len(tmp_path: Path, draws: int | None) -> None:
    module = ByLen().eval()
    result = export_module(module, tmp_path / "a", inputs=["x:float32[batch,steps,6]"], mc_draws=draws)
    assert len(torch.zeros(3)) == 3
    if draws is None:
        x = np.random.default_rng(0).standard_normal((3, 9, 6)).astype(np.float32)
        for client in clients(result.path, names_of(result)).values():
            np.testing.assert_allclose(client({"x": x})["output"], x, rtol=1e-6)


class Siamese(nn.Module):
    """Two batches through one encoder at once, taken apart again."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = nn.Linear(4, 4), nn.Dropout(0.3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        one, other = self.drop(self.body(torch.cat([x, y]))).chunk(2)
        return (one * other).sum(1)


@pytest.mark.parametrize("draws", [None, 3])
def test_inputs_that_share_a_dimension_can_be_joined_along_it(tmp_path: Path, draws: int | None) -> None:
    inputs = ["x:float32[batch,4]", "y:float32[batch,4]"]
    result = export_module(Siamese(), tmp_path / "a", inputs=inputs, mc_draws=draws, formats=["torchscript"])
    assert result.manifest.bounds == {}


class Stamps(nn.Module):
    """Images of any size in squares of sixteen pixels, as a U-Net that pads; the checks' own are no larger than one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % 16, 0, -height % 16))
        squares = F.dropout2d(F.avg_pool2d(self.first(x), 16), 0.3, self.training)
        return F.interpolate(squares, scale_factor=16.0)[..., :height, :width]


def test_a_size_that_is_one_in_the_checks_leaves_others_free(tmp_path: Path) -> None:
    module = Stamps().eval()
    inputs = ["x:float32[batch,1,height,width]"]
    result = export_module(module, tmp_path / "a", inputs=inputs)
    assert (result.manifest.bounds, result.notes) == ({}, ())
    x = torch.randn(2, 1, 50, 17)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(tmp_path / "a" / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], module(x).numpy(), atol=1e-5)
    drawn = export_module(module, tmp_path / "b", inputs=inputs, mc_draws=3, formats=["torchscript"])
    assert drawn.manifest.bounds == {}


class Single(nn.Module):
    """It fails where there are several of every sixteenth step."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, self.training)[:, ::16].reshape(x.shape[0], 4)


def test_a_size_that_must_be_one_bounds_the_others(tmp_path: Path) -> None:
    result = export_module(Single(), tmp_path / "a", inputs=["x:float32[batch,steps,4]"], formats=["torchscript"])
    assert result.manifest.bounds == {"steps": {"max": 16}}


class Delays(nn.Module):
    """Each step gets what is dropped of the one before it."""

    def forward(self, x: Tensor) -> Tensor:
        found = torch.zeros_like(x)
        found[:, 1:] = F.dropout(x, 0.3, self.training)[:, :-1]
        return found


def test_what_is_written_to_a_part_of_the_steps_bounds_no_number_of_them(tmp_path: Path) -> None:
    result = export_module(Delays(), tmp_path / "a", inputs=["x:float32[batch,steps,4]"], mc_draws=3)
    assert (result.manifest.bounds, result.notes) == ({}, ())
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(tmp_path / "a" / "model.onnx", providers=["CPUExecutionProvider"])
    (drawn,) = session.run(["output.mean"], {"x": np.ones((5, 2, 4), np.float32)})
    assert (drawn[:, 0] == 0).all()
    assert (drawn[:, 1] > 0).any()
