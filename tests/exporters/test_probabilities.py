"""Outputs that are probabilities already, ``--task probabilities``: what is made of them, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor, nn

from deploykit import statistics
from deploykit.errors import ExportError
from deploykit.manifest import OutputSpec
from exporters.export import ExportResult, export_module
from exporters.rewrite.statistics import summarize
from tests.exporters.test_monte_carlo import clients, names_of, oracle
from tests.exporters.test_outputs import results, rows

SPEC = "x:float32[batch,6]"
STATISTICS = ("probs", "probs_std", "entropy", "mutual_information")
Arrays = dict[str, np.ndarray[Any, Any]]


class Net(nn.Module):
    """``predict_step`` makes probabilities of the scores of ``forward``."""

    def __init__(self, make: Any = lambda y: torch.softmax(y, -1), features: int = 6) -> None:
        super().__init__()
        self.make, self.drop, self.body = make, nn.Dropout(0.4), nn.Linear(6, features)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.body(self.drop(x)) * 3
        return scores

    def predict_step(self, x: Tensor) -> Any:
        return self.make(self(x))


def exported(module: nn.Module, path: Path, **options: Any) -> ExportResult:
    torch.manual_seed(0)
    given: dict[str, Any] = {"inputs": [SPEC], "mc_draws": 5, "task": "probabilities", "method": "predict_step"}
    return export_module(module, path, **given | options)


def by_hand(draws: np.ndarray, axis: int | None) -> Arrays:
    """What the draws (draws, batch, ...) of probabilities must give, with the entropies of scipy."""
    draws = draws.astype(np.float64)
    if axis is None or draws.shape[axis + 1] == 1:
        coins = draws if axis is None else draws.squeeze(axis + 1)
        each = np.stack([coins, 1 - coins], -1)
    else:
        each = np.moveaxis(draws, axis + 1, -1)
    total = scipy.stats.entropy(each.mean(0), axis=-1)
    return {
        "probs": draws.mean(0),
        "probs_std": draws.std(0, ddof=1),
        "entropy": total,
        "mutual_information": total - scipy.stats.entropy(each, axis=-1).mean(0),
    }


def assert_by_hand(got: Arrays, draws: np.ndarray, axis: int | None, atol: float = 3e-6) -> None:
    assert [name for name in got if name != "output.draws"] == [f"output.{name}" for name in STATISTICS]
    for name, value in by_hand(draws, axis).items():
        np.testing.assert_allclose(got[f"output.{name}"], value, rtol=0, atol=atol, err_msg=name)


@st.composite
def probabilities(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """(draws, batch, ...) float32 with exact 0 and 1, and what rounding may have put a hair beyond them."""
    shape = (draw(st.integers(2, 5)), *draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    edges = st.sampled_from((0.0, 1.0, -(2.0**-24), 1 + 2.0**-23, 2.0**-149))
    values = draw(npst.arrays(np.float32, shape, elements=edges | st.floats(0, 1, width=32)))
    return values, draw(st.integers(1, len(shape) - 2))


@given(probabilities())
def test_the_torch_form_is_the_numpy_form(given: tuple[np.ndarray, int]) -> None:
    values, axis = given
    event = values.shape[axis + 1] == 1
    got = summarize(
        torch.from_numpy(values), classification=True, scores=False, class_axis=axis, event=event, variances=None,
        keep_draws=True,
    )  # fmt: skip
    wanted = statistics.summarize(values, classification=True, scores=False, class_axis=axis)
    assert list(got) == [*STATISTICS, "draws"]
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name].numpy(), value, rtol=0, atol=2e-6, err_msg=name)
    assert min(got["entropy"].min(), got["mutual_information"].min()) >= 0


@pytest.mark.parametrize(
    ("spec", "shape", "make", "axis"),
    [
        ("x:float32[batch,seq,6]", (3, 7, 6), lambda y: torch.softmax(y, -1), -1),
        ("x:float32[batch,height,5,6]", (3, 4, 5, 6), lambda y: torch.softmax(y.permute(0, 3, 1, 2), 1), 1),
        ("x:float32[batch,6]", (4, 6), lambda y: torch.sigmoid(y[:, 0]), None),
        ("x:float32[batch,6]", (4, 6), lambda y: torch.sigmoid(y).unsqueeze(-1), -1),
    ],
    ids=["tokens", "pixels", "one event", "several events"],
)
def test_the_files_give_the_statistics_of_the_module_in_eager_pytorch(
    spec: str, shape: tuple[int, ...], make: Any, axis: int | None, tmp_path: Path
) -> None:
    task = "probabilities" if axis is None else f"output=probabilities@{axis}"
    module = Net(make)
    result = exported(module, tmp_path / "a", inputs=[spec], task=task, keep_draws=True)
    found: dict[str, OutputSpec] = {output.name: output for output in result.manifest.outputs}
    x, ids = rows(*shape), np.arange(shape[0]) * 7
    eager = nn.Sequential(module)
    eager.forward = module.predict_step  # type: ignore[method-assign]
    wanted = oracle(eager.train(), x, ids, 3, range(2, 8))
    own = None if axis is None else axis % (wanted.ndim - 1)
    for client in clients(result.path, names_of(result)).values():
        got = client({"x": x}, sample_ids=ids, seed=3, first_draw=2, draws=6)
        np.testing.assert_allclose(np.swapaxes(got["output.draws"], 0, 1), wanted, rtol=0, atol=2e-6)
        assert_by_hand(got, wanted, own)
        pieces = [
            client({"x": x}, sample_ids=ids, seed=3, first_draw=first, draws=draws) for first, draws in ((2, 1), (3, 5))
        ]
        short = [{name: piece[f"output.{name}"] for name in STATISTICS} for piece in pieces]
        joined = statistics.combine(short, [1, 5], class_axis=found["output.probs"].class_axis)
        assert_by_hand({f"output.{name}": value for name, value in joined.items()}, wanted, own)
    assert {output.task for output in found.values()} == {"probabilities"}
    assert found["output.probs"].class_axis == found["output.probs_std"].class_axis == own
    assert found["output.draws"].class_axis == (None if own is None else own + 1)
    assert found["output.entropy"].class_axis is found["output.mutual_information"].class_axis is None


def edges(y: Tensor) -> dict[str, Tensor]:
    """Draws that are sure of one class, a hair beyond 0 and 1 as rounding may put them, and some that are NaN."""
    hair = torch.tensor([1 + 2.0**-23, -(2.0**-24), 0, 0, 0, 0]) + 0 * y
    return {
        "sure": F.one_hot(y.argmax(-1), 6).to(y.dtype), "hair": hair, "above": hair[:, :1], "below": hair[:, 1],
        "broken": torch.softmax(y, -1).masked_fill(y[:, :1] > 2.5, torch.nan),
    }  # fmt: skip


@pytest.fixture(scope="module")
def at_the_edges(tmp_path_factory: pytest.TempPathFactory) -> list[Arrays]:
    task = [f"{name}=probabilities" for name in ("sure", "hair", "above", "below", "broken")]
    result = exported(Net(edges), tmp_path_factory.mktemp("edges") / "a", mc_draws=20, task=task, keep_draws=True)
    return results(result, rows(20, 6))


def test_draws_of_exactly_0_and_1_in_the_files(at_the_edges: list[Arrays]) -> None:
    for got in at_the_edges:
        draws = np.swapaxes(got["sure.draws"], 0, 1)
        assert set(np.unique(draws)) == {0, 1}
        for name, value in by_hand(draws, 1).items():
            np.testing.assert_allclose(got[f"sure.{name}"], value, rtol=0, atol=3e-6, err_msg=name)
        assert got["sure.mutual_information"].max() > 0.5


def test_a_hair_beyond_0_and_1_has_no_entropy_in_the_files(at_the_edges: list[Arrays]) -> None:
    for got in at_the_edges:
        for name in (f"{source}.{kind}" for source in ("hair", "above", "below") for kind in STATISTICS[2:]):
            np.testing.assert_array_equal(got[name], np.zeros(20), err_msg=name)
            assert not np.signbit(got[name]).any(), name
        assert got["above.probs"].min() > 1, "the probabilities themselves are what the module gave"


def test_one_draw_that_is_no_number_shows_in_both_formats(at_the_edges: list[Arrays]) -> None:
    for got in at_the_edges:
        hit = np.isnan(got["broken.draws"]).any((1, 2))
        assert 0 < hit.sum() < hit.size
        for name in STATISTICS:
            shown = np.isnan(got[f"broken.{name}"].reshape(len(hit), -1)).any(1)
            np.testing.assert_array_equal(shown, hit, err_msg=name)


class DroppedWeight(Net):
    """A weight of a convolution behind a dropout: one draw at a time."""

    def predict_step(self, x: Tensor) -> Tensor:
        return torch.softmax(F.conv1d(x[:, None], self.drop(self.body.weight[:, None, :3])).mean(-1), -1)


def test_probabilities_one_draw_at_a_time(tmp_path: Path) -> None:
    result = exported(DroppedWeight(), tmp_path / "a", keep_draws=True)
    assert result.manifest.monte_carlo is not None
    assert result.manifest.monte_carlo.form == "sequential"
    for got in results(result, rows(4, 6)):
        assert_by_hand(got, np.swapaxes(got["output.draws"], 0, 1), 1)


def test_probabilities_in_half_precision(tmp_path: Path) -> None:
    """Rounded to so few digits they add up to 1 only nearly, and are taken as they are."""
    inputs = [SPEC.replace("float32", "float16")]
    result = exported(Net().half(), tmp_path / "a", inputs=inputs, keep_draws=True)
    for got in results(result, rows(8, 6).astype(np.float16)):
        assert {value.dtype for value in got.values()} == {np.dtype("float16")}
        assert_by_hand(got, np.swapaxes(got["output.draws"], 0, 1), 1, atol=2e-3)


@pytest.mark.parametrize(
    ("make", "task", "message"),
    [
        (lambda y: {"p": y}, "p=probabilities", r"'p': has values such as -?[\d.]+ in.*0 and 1.*p=classification$"),
        (lambda y: torch.log_softmax(y, -1), "probabilities", r"such as -.*--task output=classification$"),
        (lambda y: y[:, 0], "probabilities", r"has values such as.*--task output=classification$"),
        (lambda y: y[:, None], "output=probabilities@-1", r"such as.*--task output=classification@2$"),
        (torch.sigmoid, "probabilities", r"adds up to [\d.]+ along axis 1.*size 1: unsqueeze\(-1\)"),
        (
            lambda y: torch.softmax(torch.stack([y, -y], 1), -1),
            "probabilities",
            r"adds up to.*axis 1.*probabilities@AXIS",
        ),
        (lambda y: torch.softmax(y, -1) * 1.001, "probabilities", r"adds up to 1.001 along axis 1"),
    ],
)
def test_what_is_no_probability_is_refused(make: Any, task: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        exported(Net(make), tmp_path / "a", task=task, formats=["torchscript"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "task", "way"),
    [
        (lambda y: torch.softmax(y, -1), "classification", "--task output=probabilities, or return"),
        (
            lambda y: torch.softmax(y[:, None], -1),
            "output=classification@-1",
            "--task output=probabilities@2, or return",
        ),
    ],
)
def test_the_refusal_of_probabilities_as_scores_says_the_way_out(
    make: Any, task: str, way: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=f"is probabilities already.*{way}"):
        exported(Net(make), tmp_path / "a", task=task)


def test_without_draws_the_task_is_kept(tmp_path: Path) -> None:
    result = exported(Net(), tmp_path / "a", mc_draws=None, formats=["torchscript"])
    (output,) = result.manifest.outputs
    assert (output.name, output.statistic, output.task, output.class_axis) == ("output", "value", "probabilities", 1)
