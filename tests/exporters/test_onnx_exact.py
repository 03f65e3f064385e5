"""Small numbers stay in an ONNX file what they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deploykit.errors import ExportError
from exporters.export import export_module

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def ran(module: nn.Module, path: Path, x: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:  # type: ignore[type-arg]
    """What the exported file gives for ``x``, and what the module gives."""
    export_module(module.eval(), path / "a", inputs=["x:float32[batch,4]"], formats=["onnx"])
    session = ort.InferenceSession(str(path / "a" / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x}), strict=True)), module(torch.from_numpy(x))


class Careful(nn.Module):
    """Written so that a probability of zero and an empty row do no harm, as is often done."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        p = x.softmax(-1)
        return {
            "entropy": -(p * (p + 1e-9).log()),
            "unit": x / (x.norm(dim=-1, keepdim=True) + 1e-12),
            "apart": (x - 1e-9).abs().log(),
        }


def test_a_number_that_keeps_a_logarithm_finite_is_not_dropped(tmp_path: Path) -> None:
    """Random inputs never come near it, so that the comparison at export does not see it."""
    got, wanted = ran(Careful(), tmp_path, np.array([[0, 0, 0, 0], [400, 0, -400, 1]], np.float32))
    for name, value in wanted.items():
        assert np.isfinite(got[name]).all()
        np.testing.assert_allclose(got[name], value.numpy(), rtol=1e-4, atol=1e-6)


class Sure(nn.Module):
    """Logarithms of probabilities of a model that is sure of itself."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = x.masked_fill(x < -500, -torch.inf)
        return {
            "log": F.logsigmoid(x),
            "loss": F.binary_cross_entropy_with_logits(x, (x > 0.2).float(), reduction="none"),
            "sum": torch.logaddexp(low, low.flip(1)),
            "sum2": torch.logaddexp2(x, x.flip(1)),
        }


def test_logarithms_of_small_probabilities_are_finite(tmp_path: Path) -> None:
    x = np.array([[-1000, -100, -30, -1], [-600, 30, 100, -600], [0, 0, 1000, 0.1]], np.float32)
    got, wanted = ran(Sure(), tmp_path, x)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value.numpy(), rtol=1e-5, atol=1e-6)


class Limited(nn.Module):
    """Limits of two types, and of integers."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        counts = (x * 10).long()
        return {
            "mixed": x.clamp(1e-6, 1),
            "above": x.clamp(max=0.5) + x.clamp(min=-1),
            "wide": x.double().clamp(0, 0.5),
            "counts": counts.clamp(-3, 4),
            "fractions": counts.clamp(0.5, 2),
            "inplace": torch.clamp_(x + 1, 0.25, 2),
        }


def test_numbers_limit_what_they_limit_in_torch(tmp_path: Path) -> None:
    x = np.array([[-2, 0.05, np.nan, 0.15], [0, 1e-7, 3, np.inf]], np.float32)
    got, wanted = ran(Limited(), tmp_path, x)
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value.numpy(), strict=True, err_msg=name)


class LimitedTwice(nn.Module):
    """Limits of limits, and two of one tensor, which torch's exporter joins."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        wide = x.double()
        return {
            "wide": wide.clamp(0, 1) + wide.clamp(0, 0.5) + wide.clamp(-1, 0.25),
            "twice": x.clamp(0.0, 1.0).clamp(0.2, 0.3) + x.clamp(0.0, 0.5).clamp(-1.0, 0.4),
            "above": x.clamp(max=0.5).clamp(max=0.4) + x.clamp(max=0.3).clamp(max=0.2),
            "below": x.clamp(min=-1).clamp(min=-0.5) + x.clamp(min=0.1).clamp(min=0.2),
            "x_min": x.relu().clamp(max=0.5) + x.relu().clamp(0.1, 0.2),
        }


def test_each_limit_of_a_tensor_with_several_is_kept(tmp_path: Path) -> None:
    x = np.array([[-2, 0.05, 0.45, 0.15], [0, -0.7, 3, 0.7]], np.float32)
    got, wanted = ran(LimitedTwice(), tmp_path, x)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value.numpy(), rtol=1e-7, strict=True, err_msg=name)


def test_a_running_sum_of_powers_is_refused_by_its_module(tmp_path: Path) -> None:
    class Running(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.logcumsumexp(x, 1)

    with pytest.raises(ExportError, match=r"^0: aten\.logcumsumexp\.default .*beyond 88; export with --format torch"):
        ran(nn.Sequential(Running()), tmp_path, np.zeros((1, 4), np.float32))


class NamedLikeOperations(nn.Module):
    """As torch calls its own values, and as a weight is called."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(4, 4), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {
            "linear": self.linear(x).relu(),
            "mean": x.mean(1) + 1,
            "scale": self.scale * x,
            "mean_inner_1": x.mean(1),
        }


def test_outputs_may_be_called_as_torch_calls_its_own_values(tmp_path: Path) -> None:
    got, wanted = ran(NamedLikeOperations(), tmp_path, np.ones((3, 4), np.float32))
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value.detach().numpy(), rtol=1e-5)


class BuffersNamedLikeOperations(nn.Module):
    """As torch calls its own values, and as the inputs that decide the draws are called."""

    names = ("mean", "mul", "add", "seed", "sample_ids", "draw_ids", "row_ids", "first_draw", "draws")

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)
        for number, name in enumerate(self.names):
            self.register_buffer(name, torch.arange(4.0) + number)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = x - self.get_buffer(name) * x.mean(1, keepdim=True)
        return self.drop(x)


@pytest.mark.parametrize("draws", [None, 3])
def test_buffers_may_be_called_as_torch_calls_its_own_values(tmp_path: Path, draws: int | None) -> None:
    inputs = ["x:float32[batch,4]"]
    result = export_module(BuffersNamedLikeOperations().eval(), tmp_path / "a", inputs=inputs, mc_draws=draws)
    assert result.max_error < 1e-5


class InputsNamedLikeOperations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, cat: Tensor, mean: Tensor, add: Tensor) -> Tensor:
        joined = torch.cat([self.drop(cat + mean), add], 1)
        return joined + joined.mean(1, keepdim=True)


@pytest.mark.parametrize("draws", [None, 3])
def test_inputs_may_be_called_as_torch_calls_its_own_values(tmp_path: Path, draws: int | None) -> None:
    inputs = [f"{name}:float32[batch,4]" for name in ("cat", "mean", "add")]
    result = export_module(InputsNamedLikeOperations().eval(), tmp_path / "a", inputs=inputs, mc_draws=draws)
    assert result.max_error < 1e-5
