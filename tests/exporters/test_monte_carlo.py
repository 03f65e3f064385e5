"""Every supported way of using dropout, in both formats, against the eager module with numpy masks.

``export_module`` refuses to write a file that differs from the oracle, so an export that succeeds has been compared;
these tests call the files once more as a plain client and compare with an oracle of their own, which shares nothing
with the rewrite: the module run draw by draw, each dropout answered from ``deploykit.masks``.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from deploykit import masks
from deploykit.errors import ExportError
from deploykit.statistics import summarize
from exporters.eager.dropouts import answered_dropouts
from exporters.export import ExportResult, export_module
from exporters.noise.mask_ops import _PIECE_UNITS as PIECE_UNITS
from tests.exporters import models

SPEC = "x:float32[batch,6]"


def clients(artifact: Path, outputs: list[str]) -> dict[str, Any]:
    """The two files called as somebody without deploykit calls them."""
    session = onnxruntime.InferenceSession(artifact / "model.onnx", providers=["CPUExecutionProvider"])
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit.load"):
        module = torch.jit.load(artifact / "model.torchscript.pt")

    def onnx(inputs: dict[str, np.ndarray], **controls: Any) -> dict[str, np.ndarray]:
        feeds = inputs | {name: np.asarray(value) for name, value in controls.items()}
        return dict(zip(outputs, session.run(outputs, feeds), strict=True))

    def torchscript(inputs: dict[str, np.ndarray], **controls: Any) -> dict[str, np.ndarray]:
        if "sample_ids" in controls:
            controls["sample_ids"] = torch.from_numpy(controls["sample_ids"])
        found = module(**{name: torch.from_numpy(array) for name, array in inputs.items()}, **controls)
        return {name: value.numpy() for name, value in found.items()}

    return {"onnx": onnx, "torchscript": torchscript}


def names_of(result: ExportResult) -> list[str]:
    return [output.name for output in result.manifest.outputs]


def oracles(module: nn.Module, x: np.ndarray, ids: np.ndarray, seed: int, draws: range) -> dict[str, np.ndarray]:
    """(draws, batch, ...) by output of a module whose masks all have the batch first, perhaps folded with another
    dimension."""
    found = []
    for draw in draws:
        site = iter(range(100))

        def keep(kind: str, shape: Any, p: float, draw: int = draw, site: Any = site) -> torch.Tensor:
            units = int(np.prod(shape)) // len(ids)
            return torch.from_numpy(masks.keep_mask(seed, next(site), ids, [draw], units, p)[0].reshape(shape))

        with torch.no_grad(), answered_dropouts(keep):
            given = module(torch.from_numpy(x))
        found.append(given if isinstance(given, dict) else {"output": given})
    return {name: np.stack([each[name].numpy() for each in found]) for name in found[0]}


def oracle(module: nn.Module, x: np.ndarray, ids: np.ndarray, seed: int, draws: range) -> np.ndarray:
    """The same of a module with one output."""
    (found,) = oracles(module, x, ids, seed, draws).values()
    return found


LIKE_OTHERS = ["nn.GRU", "nn.RNN", "nn.TransformerEncoder", "nn.Dropout3d", "F.feature_alpha_dropout"]
"""Of each of these there is one of the same kind beside it, or in ``test_evidence``."""
COMMON = [name for name in models.CONSTRUCTS if name not in LIKE_OTHERS]


class Beside(nn.Module):
    """Constructs on the same rows: an export of all takes a part of what one of each does."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = [name.replace(".", " ") for name in names]
        self.each = nn.ModuleList(models.CONSTRUCTS[name]() for name in names)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: module(x) for name, module in zip(self.names, self.each, strict=True)}


@pytest.mark.parametrize(
    "names", [COMMON, pytest.param(LIKE_OTHERS, marks=pytest.mark.exhaustive)], ids=["common", "like them"]
)
def test_both_formats_equal_the_module_with_numpy_masks(names: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Beside(names)
    result = export_module(module.eval(), tmp_path / "a", inputs=[SPEC], mc_draws=5, keep_draws=True)
    assert result.manifest.monte_carlo is not None
    assert result.manifest.monte_carlo.form == "batched", "else a defect of that form would only make it slower"
    ids = np.array([3, 2**40, 0, 77, -5, 12, 13, 14, 15], dtype=np.int64)
    x = np.random.default_rng(1).standard_normal((len(ids), 6)).astype(np.float32)
    every = oracles(module.train(), x, ids, 9, range(2, 9))
    for client in clients(result.path, names_of(result)).values():
        got = client({"x": x}, sample_ids=ids, seed=9, first_draw=2, draws=7)
        for name, wanted in every.items():
            assert wanted.std(0).max() > 1e-3, "the oracle itself must be random"
            scale = np.abs(wanted).max()
            found = np.swapaxes(got[f"{name}.draws"], 0, 1)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * scale, err_msg=name)
            for statistic, value in summarize(wanted, classification=False).items():
                found = got[f"{name}.{statistic}"]
                np.testing.assert_allclose(found, value, rtol=0, atol=1e-5 * max(1, scale), err_msg=name)


class Folded(nn.Module):
    """The batch in another dimension, or in one with others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.heads, self.inner = models.SequenceFirst(), models.FoldedHeads(), models.FoldedInner()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: module(x) for name, module in self.named_children()}


@pytest.mark.parametrize("kind", [Folded, models.TrainingAux, models.Decoder], ids=lambda kind: kind.__name__)
def test_the_batch_is_found_wherever_it_lies(kind: type[nn.Module], tmp_path: Path) -> None:
    """The parity gate compares at four batch sizes; a row's result must also be the same alone and in company."""
    torch.manual_seed(0)
    result = export_module(kind(), tmp_path / "a", inputs=[SPEC], mc_draws=6, keep_draws=True)
    ids = np.arange(40, 46, dtype=np.int64)
    x = np.random.default_rng(1).standard_normal((6, 6)).astype(np.float32)
    names = [name for name in names_of(result) if name.endswith(".draws")]
    assert len(names) == (3 if kind is Folded else 1)
    for client in clients(result.path, names_of(result)).values():
        together = client({"x": x}, sample_ids=ids)
        alone = {row: client({"x": x[row : row + 1]}, sample_ids=ids[row : row + 1]) for row in (0, 3, 5)}
        for name in names:
            assert together[name].std(1).min() > 0
            for row, found in alone.items():
                np.testing.assert_allclose(found[name][0], together[name][row], rtol=0, atol=1e-5, err_msg=name)


def test_a_mask_is_bit_for_bit_the_numpy_reference_in_both_formats(tmp_path: Path) -> None:
    """Dropout of ones behind an identity: what comes out is the mask itself. Many units are computed in pieces."""
    sizes = [257, PIECE_UNITS, PIECE_UNITS + 1, 2 * PIECE_UNITS + 1]

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.channels = nn.Dropout(0.1), nn.Dropout2d(0.7)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            found = {}
            for units in sizes:
                some = x[:, :units]
                found[f"plain {units}"] = self.drop(some)
                found[f"channels {units}"] = self.channels(some[:, :, None, None].expand(-1, -1, 1, 2))
            return found

    inputs = [f"x:float32[batch,{max(sizes)}]"]
    result = export_module(Bare(), tmp_path / "a", inputs=inputs, mc_draws=3, keep_draws=True)
    ids = np.array([0, 1, 2**62, -1, 999_999_999_999], dtype=np.int64)
    x, draws = np.ones((5, max(sizes)), np.float32), np.arange(1000, 1004)
    for client in clients(result.path, names_of(result)).values():
        got = client({"x": x}, sample_ids=ids, seed=-(2**62), first_draw=1000, draws=4)
        for number, units in enumerate(sizes):
            plain = masks.keep_mask(-(2**62), 2 * number, ids, draws, units, 0.1)
            np.testing.assert_array_equal(np.swapaxes(got[f"plain {units}.draws"], 0, 1) != 0, plain)
            channels = masks.keep_mask(-(2**62), 2 * number + 1, ids, draws, units, 0.7)
            kept = np.swapaxes(got[f"channels {units}.draws"], 0, 1) != 0
            np.testing.assert_array_equal(kept, np.broadcast_to(channels[..., None, None], kept.shape))


def test_shared_masks_are_the_same_for_all_rows(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Dropout(0.5))
    result = export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=4, mask_mode="shared", keep_draws=True)
    x = np.ones((5, 6), np.float32)
    wanted = masks.keep_mask(0, 0, [0], np.arange(4), 6, 0.5, mode="shared")
    for client in clients(result.path, names_of(result)).values():
        kept = client({"x": x}, sample_ids=np.arange(100, 105))["output.draws"] != 0
        np.testing.assert_array_equal(kept, np.broadcast_to(np.swapaxes(wanted, 0, 1), kept.shape))


def test_classification_outputs_and_once_only_work(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = models.ConvNet()
    result = export_module(
        module, tmp_path / "a", inputs=["x:float32[batch,1,4,4]"], mc_draws=8, task="logits=classification",
        keep_draws=True,
    )  # fmt: skip
    statistics = ("mean", "std", "probs", "probs_std", "entropy", "mutual_information", "draws")
    assert names_of(result) == [*(f"logits.{name}" for name in statistics), "energy"]
    monte_carlo = result.manifest.monte_carlo
    assert monte_carlo is not None
    assert [(site.module, site.kind, site.p) for site in monte_carlo.sites] == [
        ("channels", "feature_dropout", 0.3), ("drop", "dropout", 0.2),
    ]  # fmt: skip
    assert monte_carlo.sites[0].shape == ("batch", 4, 1, 1)
    assert 0 < monte_carlo.nodes_once < monte_carlo.nodes_total
    assert (monte_carlo.form, monte_carlo.form_reason) == ("batched", None)
    x = np.random.default_rng(0).standard_normal((3, 1, 4, 4)).astype(np.float32)
    for client in clients(result.path, names_of(result)).values():
        got = client({"x": x})
        for name, value in summarize(np.swapaxes(got["logits.draws"], 0, 1), classification=True).items():
            np.testing.assert_allclose(got[f"logits.{name}"], value, rtol=0, atol=2e-6)


def test_the_upstream_part_runs_once_whatever_the_draws(tmp_path: Path) -> None:
    """Counted in the file: the first convolution sees the batch, the one behind the site draws times the batch."""
    result = export_module(
        models.ConvNet(), tmp_path / "a", inputs=["x:float32[batch,1,4,4]"], mc_draws=8, formats=["onnx"]
    )
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(result.path / "model.onnx", options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.zeros((3, 1, 4, 4), np.float32)})
    import json

    events = json.loads(Path(session.end_profiling()).read_text())
    shapes = [
        event["args"]["input_type_shape"][0]["float"]
        for event in events
        if event["name"].endswith("kernel_time") and "Conv" in event["args"]["op_name"]
    ]
    assert sorted(shape[0] for shape in shapes) == [3, 24]


def test_binary_classification_is_a_coin(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 1))
    result = export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=8, task="classification", keep_draws=True)
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    for client in clients(result.path, names_of(result)).values():
        got = client({"x": x})
        assert got["output.entropy"].shape == (3,)
        for name, value in summarize(np.swapaxes(got["output.draws"], 0, 1), classification=True).items():
            np.testing.assert_allclose(got[f"output.{name}"], value, rtol=0, atol=2e-6)


def test_a_loop_that_the_user_wrote_keeps_its_meaning(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = models.AlwaysOn(repeats=4).eval()
    result = export_module(module, tmp_path / "a", inputs=[SPEC])
    assert module.drop.training is False, "the module is given back as it was"
    assert names_of(result) == ["output"]
    assert result.manifest.monte_carlo is not None
    assert len(result.manifest.monte_carlo.sites) == 4
    ids, x = np.arange(5, dtype=np.int64), np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    wanted = oracle(module, x, ids, 3, range(1))[0]
    found = clients(result.path, names_of(result))
    for client in found.values():
        np.testing.assert_allclose(client({"x": x}, sample_ids=ids, seed=3)["output"], wanted, rtol=0, atol=1e-5)
        assert np.abs(client({"x": x}, seed=4)["output"] - wanted).max() > 1e-3


@pytest.fixture(scope="module")
def perceptron(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ExportResult]:
    """What some tests only read."""
    torch.manual_seed(0)
    module = models.Mlp()
    place = tmp_path_factory.mktemp("perceptron") / "a"
    return module, export_module(module, place, inputs=[SPEC], mc_draws=9, task="classification")


def test_pieces_of_draws_have_the_same_statistics_as_one_call(perceptron: tuple[nn.Module, ExportResult]) -> None:
    from deploykit.statistics import combine

    _, result = perceptron
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    for client in clients(result.path, names_of(result)).values():
        whole = client({"x": x})
        pieces = [client({"x": x}, first_draw=first, draws=count) for first, count in ((0, 4), (4, 1), (5, 4))]
        short = [{name.removeprefix("output."): value for name, value in piece.items()} for piece in pieces]
        for name, value in combine(short, [4, 1, 4]).items():
            np.testing.assert_allclose(value, whole[f"output.{name}"], rtol=0, atol=3e-6)


def test_the_average_over_many_draws_is_torch_s_own_dropout(perceptron: tuple[nn.Module, ExportResult]) -> None:
    """Mean and standard deviation over draws against torch's generator: within five standard errors."""
    module, result = perceptron
    count = 4000
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    module.train()
    torch.manual_seed(0)
    with torch.no_grad():
        native = torch.stack([module(torch.from_numpy(x)) for _ in range(count)]).numpy()
    error = native.std(0) * np.sqrt(2 / count)
    for client in clients(result.path, names_of(result)).values():
        got = client({"x": x}, draws=count)
        assert (np.abs(got["output.mean"] - native.mean(0)) < 5 * error).all()
        assert (np.abs(got["output.std"] - native.std(0)) < 5 * error).all()


def test_randomness_of_python_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="inner: draws from Python's"):
        export_module(models.Wrapped(models.skip_at_random), tmp_path / "a", inputs=[SPEC], mc_draws=4)


def test_rows_that_mix_after_a_dropout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="rows of a batch would influence each other"):
        export_module(models.Wrapped(models.mixed_rows), tmp_path / "a", inputs=[SPEC], mc_draws=4)


def test_mixing_that_no_shape_shows_is_refused_by_the_operation_that_mixes(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"inner \(aten.flip.default\): rows of a batch would influence each other"):
        export_module(models.Wrapped(models.neighbours), tmp_path / "a", inputs=[SPEC], mc_draws=4)
    assert list(tmp_path.iterdir()) == []


def test_the_extreme_probabilities(tmp_path: Path) -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.none, self.all = nn.Dropout(0.5), nn.Dropout(0.0), nn.Dropout(1.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.drop(x), self.none(x), self.all(x)], 1)

    result = export_module(Three(), tmp_path / "a", inputs=[SPEC], mc_draws=3, keep_draws=True)
    x = np.ones((2, 6), np.float32)
    for client in clients(result.path, names_of(result)).values():
        found = client({"x": x})["output.draws"]
        np.testing.assert_array_equal(found[..., 6:12], 1)
        np.testing.assert_array_equal(found[..., 12:], 0)


def test_no_dropout_and_no_effect_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no dropout found"):
        export_module(nn.Linear(6, 3), tmp_path / "a", inputs=["input:float32[batch,6]"], mc_draws=4)

    def unused(owner: nn.Module, x: torch.Tensor) -> torch.Tensor:
        F.dropout(x, 0.5, owner.training)
        return x

    with pytest.raises(ExportError, match="nothing to draw"):
        export_module(models.Wrapped(unused), tmp_path / "a", inputs=[SPEC], mc_draws=4)


def test_a_wrong_number_of_sample_ids_fails_in_both_formats(perceptron: tuple[nn.Module, ExportResult]) -> None:
    _, result = perceptron
    x = np.zeros((4, 6), np.float32)
    for client in clients(result.path, names_of(result)).values():
        for count in (1, 3, 5, 8):
            with pytest.raises(Exception, match=r"sample_ids|reshape"):
                client({"x": x}, sample_ids=np.arange(count))
