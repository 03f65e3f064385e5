"""The statistics in the files, with classes along any axis, variance heads, and outputs that are left out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor, nn

from deploykit import statistics
from deploykit.cli.artifact import inspect
from deploykit.errors import ExportError, UsageError
from deploykit.manifest import OutputSpec
from exporters.export import ExportResult, export_module
from exporters.rewrite.statistics import STATISTICS, summarize
from tests.exporters.test_monte_carlo import clients, names_of

SPEC = "x:float32[batch,6]"
PARTS = ("aleatoric_std", "total_std")


class Heads(nn.Module):
    """One linear layer behind a dropout, and whatever ``make`` makes of it."""

    def __init__(self, make: Any, features: int = 6) -> None:
        super().__init__()
        self.make, self.drop, self.body = make, nn.Dropout(0.4), nn.Linear(6, features)

    def forward(self, x: Tensor) -> Any:
        return self.make(self.body(self.drop(x)), x)


def specs(result: ExportResult) -> dict[str, OutputSpec]:
    return {output.name: output for output in result.manifest.outputs}


def results(result: ExportResult, x: np.ndarray, **controls: Any) -> list[dict[str, np.ndarray]]:
    return [client({"x": x}, **controls) for client in clients(result.path, names_of(result)).values()]


def rows(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


@st.composite
def drawn(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    shape = (draw(st.integers(2, 5)), *draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    extreme = st.floats(-20, 20, width=32) | st.sampled_from((1e4, -1e4))
    return draw(npst.arrays(np.float32, shape, elements=extreme)), draw(st.integers(1, len(shape) - 2))


@given(drawn(), st.booleans())
def test_the_torch_form_is_the_numpy_form(given: tuple[np.ndarray, int], logarithm: bool) -> None:
    values, axis = given
    heads = np.clip(values[..., :1], -20, 20) if logarithm else np.abs(values[..., :1])
    got = summarize(
        torch.from_numpy(values), classification=True, class_axis=axis, event=values.shape[axis + 1] == 1,
        variances=(torch.from_numpy(heads), logarithm), keep_draws=True,
    )  # fmt: skip
    variances = np.exp(heads.astype(np.float64)) if logarithm else heads
    wanted = statistics.summarize(values, classification=True, class_axis=axis, variances=variances)
    assert [*wanted, "draws"] == list(got) == list(STATISTICS)
    for name, value in wanted.items():
        assert got[name].dtype is torch.float32
        # Of the terms of the sum, which may cancel.
        scale = max(1.0, np.abs(values).max()) if name in ("mean", "std", *PARTS) else 1.0
        np.testing.assert_allclose(got[name].numpy(), value, rtol=0, atol=2e-6 * scale, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [1, 3])
def test_extreme_logits_stay_finite_in_every_precision(dtype: torch.dtype, classes: int) -> None:
    table = torch.tensor([[1e4, -1e4, 0], [-torch.inf, 0, 1], [1e4, -torch.inf, 1e4], [0, -torch.inf, -1e4]])
    draws = torch.stack([table, table.flip(0)])[..., :classes].to(dtype)
    got = summarize(draws, classification=True, class_axis=1, event=classes == 1, variances=None, keep_draws=False)
    wanted = statistics.summarize(draws.numpy(), classification=True)
    for name in ("probs", "probs_std", "entropy", "mutual_information"):
        np.testing.assert_allclose(got[name].numpy(), wanted[name], atol=2e-3 if dtype is torch.float16 else 1e-6)


def test_variances_of_zero_and_below() -> None:
    draws = torch.zeros(2, 3, 1)
    logarithms = torch.tensor([[[40.0], [-torch.inf], [-40.0]]] * 2)
    got = summarize(
        draws, classification=False, class_axis=None, event=False, variances=(logarithms, True), keep_draws=False
    )
    for name in PARTS:
        np.testing.assert_allclose(got[name].numpy()[:, 0], [np.exp(20), 0, np.exp(-20)], rtol=1e-5)
    negative = torch.tensor([[[1.0], [-1e-3], [torch.nan]], [[1.0], [1.0], [1.0]]])
    got = summarize(
        draws, classification=False, class_axis=None, event=False, variances=(negative, False), keep_draws=False
    )
    for name in PARTS:
        np.testing.assert_array_equal(np.isnan(got[name].numpy()[:, 0]), [False, True, True])


@pytest.mark.parametrize(
    ("spec", "shape", "make", "axis"),
    [
        ("x:float32[batch,seq,6]", (3, 7, 6), lambda y, x: y, -1),
        ("x:float32[batch,4,5,6]", (3, 4, 5, 6), lambda y, x: y.permute(0, 3, 1, 2), 1),
        ("x:float32[batch,4,width,6]", (2, 4, 3, 6), lambda y, x: y[:, :, :, :1], 3),
        ("x:float32[batch,6]", (4, 6), lambda y, x: y[:, 0], None),
        ("x:float32[batch,seq,6]", (2, 5, 6), lambda y, x: y.sum(-1), 1),
    ],
    ids=["tokens", "pixels", "binary pixels", "binary", "places in a sequence"],
)
def test_classes_along_any_axis(spec: str, shape: tuple[int, ...], make: Any, axis: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = "classification" if axis is None else f"output=classification@{axis}"
    result = export_module(Heads(make), tmp_path / "a", inputs=[spec], mc_draws=4, task=task, keep_draws=True)
    found = specs(result)
    x = rows(*shape)
    for got in results(result, x, sample_ids=np.arange(shape[0]) * 7, seed=3, draws=2):
        draws = np.swapaxes(got["output.draws"], 0, 1)
        own = None if axis is None else axis % (draws.ndim - 1)
        wanted = statistics.summarize(draws, classification=True, class_axis=own)
        assert [f"output.{name}" for name in (*wanted, "draws")] == list(got) == list(found)
        for name, value in wanted.items():
            np.testing.assert_allclose(got[f"output.{name}"], value, rtol=0, atol=3e-6, err_msg=name)
            assert len(found[f"output.{name}"].shape) == value.ndim
        assert found["output.probs"].class_axis == found["output.mean"].class_axis == own
        assert found["output.draws"].class_axis == (None if own is None else own + 1)
        assert found["output.entropy"].class_axis is found["output.mutual_information"].class_axis is None


def test_a_sequence_of_one_place_is_certain_of_it(tmp_path: Path) -> None:
    """With an example of 4 places the check tries 1 place, where a fixed size of 1 would mean the logit of an event."""
    module = Heads(lambda y, x: y.sum(-1))
    result = export_module(
        module, tmp_path / "a", inputs=["x:float32[batch,seq,6]"], example={"x": rows(3, 4, 6)}, mc_draws=4,
        task="classification",
    )  # fmt: skip
    assert 1 in result.manifest.tested["seq"]
    for got in results(result, rows(2, 1, 6)):
        assert got["output.std"].min() > 0
        np.testing.assert_array_equal(got["output.probs"], [[1], [1]])
        np.testing.assert_array_equal(got["output.entropy"], [0, 0])


def test_extreme_logits_stay_finite_in_the_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Heads(lambda y, x: (y.sign() * 1e4).masked_fill(x < -1, -torch.inf))
    result = export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=2, task="classification")
    for got in results(result, rows(50, 6)):
        assert np.isneginf(got["output.mean"]).any()
        assert (got["output.mean"] == 1e4).any()
        for name in ("probs", "probs_std", "entropy", "mutual_information"):
            assert np.isfinite(got[f"output.{name}"]).all(), name
        assert got["output.mutual_information"].max() > 0.1


def test_pieces_of_draws_combine_by_what_the_manifest_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Heads(lambda y, x: {"tokens": y, "mean": y[..., :2], "var": nn.functional.softplus(y[..., 2:4])})
    result = export_module(
        module, tmp_path / "a", inputs=["x:float32[batch,3,6]"], mc_draws=9, variance={"mean": "var"},
        task="tokens=classification@2",
    )  # fmt: skip
    x, axis = rows(4, 3, 6), specs(result)["tokens.probs"].class_axis
    for client in clients(result.path, names_of(result)).values():
        whole = client({"x": x})
        pieces = [client({"x": x}, first_draw=first, draws=count) for first, count in ((0, 4), (4, 1), (5, 4))]
        for source in ("tokens", "mean"):
            short = [
                {name.removeprefix(f"{source}."): value for name, value in piece.items() if name.startswith(source)}
                for piece in pieces
            ]
            found = statistics.combine(short, [4, 1, 4], class_axis=axis)
            assert {f"{source}.{name}" for name in found} == {name for name in whole if name.startswith(source)}
            for name, value in found.items():
                np.testing.assert_allclose(value, whole[f"{source}.{name}"], rtol=0, atol=3e-6, err_msg=name)


def gaussian(y: Tensor, x: Tensor) -> dict[str, Tensor]:
    return {"mu": y[:, :3], "spread": y[:, 3:], "fixed": x[:, :1], "label": y.argmax(1)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, ExportResult]:
    """Mean and variance as outputs of their own."""
    torch.manual_seed(0)
    module, place = Heads(gaussian), tmp_path_factory.mktemp("whole") / "a"
    return module, export_module(module, place, inputs=[SPEC], mc_draws=5, keep_draws=True, task="label=none")


@pytest.mark.parametrize("head", ["spread", "fixed"])
def test_a_variance_head_gives_both_parts(head: str, whole: tuple[nn.Module, ExportResult], tmp_path: Path) -> None:
    """``spread`` is drawn like the mean; ``fixed`` depends on no dropout and is the same for all values of a row."""
    module, apart = whole
    result = export_module(
        module, tmp_path / "a", inputs=[SPEC], mc_draws=5, log_variance={"mu": head}, keep_draws=True,
        task=["label=none", *(["spread=regression"] if head == "fixed" else [])],
    )  # fmt: skip
    found = specs(result)
    assert [name for name in found if name.startswith("mu.")] == [
        f"mu.{name}" for name in ("mean", "std", *PARTS, "draws")
    ]
    assert not any(name.split(".")[0] == head for name in found)
    assert {found[f"mu.{part}"].task for part in PARTS} == {"regression"}
    x = rows(4, 6)
    for got, parts in zip(results(result, x, seed=2), results(apart, x, seed=2), strict=True):
        mean = np.swapaxes(parts["mu.draws"], 0, 1)
        log = np.swapaxes(parts["spread.draws"], 0, 1) if head == "spread" else parts["fixed"][None]
        for name, value in statistics.summarize(mean, variances=np.exp(log.astype(np.float64))).items():
            np.testing.assert_allclose(got[f"mu.{name}"], value, rtol=0, atol=3e-6, err_msg=name)


def test_negative_variances_come_out_as_nan_in_both_formats(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Heads(lambda y, x: {"mu": y[:, :1], "var": y[:, 1:2]})
    result = export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=3, variance={"mu": "var"})
    for got in results(result, rows(40, 6)):
        assert 0 < np.isnan(got["mu.aleatoric_std"]).sum() < 40
        np.testing.assert_array_equal(np.isnan(got["mu.aleatoric_std"]), np.isnan(got["mu.total_std"]))
        assert np.isfinite(got["mu.std"]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda y, x: {"mu": y[:, 0], "var": y[:, :1].exp()},
            r"'var': has shape \[batch, 1\].*'mu' with shape \[batch\]",
        ),
        (lambda y, x: {"mu": y[:, :2], "var": y[:, :3].exp()}, r"\[batch, 3\].*\[batch, 2\]"),
        (lambda y, x: {"mu": y[:, :2], "var": y[:, :2].argmax(1)}, "'var': is int64"),
        (lambda y, x: {"mu": x[:, :2], "var": y[:, :2].exp()}, "'mu': depends on no dropout"),
    ],
)
def test_a_variance_that_does_not_fit_is_refused_by_name(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export_module(Heads(make), tmp_path / "a", inputs=[SPEC], mc_draws=3, variance={"mu": "var"})
    with pytest.raises(UsageError, match="add --mc-draws"):
        export_module(Heads(make), tmp_path / "a", inputs=[SPEC], variance={"mu": "var"})


def mixture(y: Tensor, x: Tensor) -> Tensor:
    """The probabilities of two classifiers, averaged."""
    return (torch.softmax(y, -1) + torch.softmax(y * 2, -1)) / 2


@pytest.mark.parametrize("make", [lambda y, x: {"p": torch.softmax(y, -1)}, lambda y, x: {"p": mixture(y, x)}])
def test_probabilities_are_no_class_scores(make: Any, tmp_path: Path) -> None:
    """The softmax of a softmax is nearly the same for all classes, and every row would pass for uncertain."""
    with pytest.raises(ExportError, match=r"'p': is probabilities already.*along axis 1.*--method forward"):
        export_module(Heads(make), tmp_path / "m", inputs=[SPEC], mc_draws=3, task="classification")
    result = export_module(Heads(make), tmp_path / "m", inputs=[SPEC], mc_draws=3, formats=["torchscript"])
    assert list(specs(result)) == ["p.mean", "p.std"], "of which mean and deviation are what they say"


def test_what_may_be_probabilities_of_events_is_told(tmp_path: Path) -> None:
    module = Heads(
        lambda y, x: {
            "event": torch.sigmoid(y[:, 0]), "events": torch.sigmoid(y), "scores": y, "logs": torch.log_softmax(y, 1),
        }
    )  # fmt: skip
    task = [f"{name}=classification" for name in ("event", "events", "scores", "logs")]
    result = export_module(module, tmp_path / "m", inputs=[SPEC], mc_draws=3, task=task, formats=["torchscript"])
    told = [note.partition(": all of its values lie between 0 and 1")[0] for note in result.notes]
    assert told == ["output event", "output events"]


def unwanted(y: Tensor, x: Tensor) -> dict[str, Any]:
    """What an artifact with draws cannot hold, beside what it can."""
    return {
        "logits": y, "label": y.argmax(1), "loss": y.square().mean(), "cache": {"keys": x.T, "note": "no tensor"},
    }  # fmt: skip


@pytest.mark.parametrize("draws", [3, None])
def test_outputs_are_left_out(draws: int | None, tmp_path: Path) -> None:
    task = ["label=none", "loss=none", "cache=none", "logits=classification@-1"]
    result = export_module(Heads(unwanted), tmp_path / "a", inputs=[SPEC], mc_draws=draws, task=task)
    assert {output.source for output in result.manifest.outputs} == {"logits"}
    assert {output.task for output in result.manifest.outputs} == {"classification"}
    assert result.manifest.outputs[0].class_axis == 1
    for got in results(result, rows(3, 6)):
        assert list(got) == names_of(result)


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (
            ["cache=none"], ExportError,
            "'label': is int64.*'loss': is a single number.*with --task label=none --task loss=none$",
        ),
        (["loss=none", "cache=none"], ExportError, "'label': is int64.*--task label=none"),
        (["label=none", "cache=none"], ExportError, "depends on a dropout.*rows of a batch would influence"),
        (["label=none", "loss=none"], ExportError, "cache.note.*is a str.*--task NAME=none"),
        (["labels=none", "cache=none"], UsageError, "labels=none.*outputs are logits, label, loss"),
        (["logits=none", "label=none", "loss=none", "cache=none"], ExportError, "no tensor that is not left out"),
    ],
)  # fmt: skip
def test_what_is_not_left_out_must_be_possible(
    task: list[str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        export_module(Heads(unwanted), tmp_path / "a", inputs=[SPEC], mc_draws=3, task=task)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("draws", [None, 3])
def test_all_outputs_without_a_batch_are_named_at_once(draws: int | None, tmp_path: Path) -> None:
    module = Heads(lambda y, x: {"y": y, "turned": y.T, "again": 2 * y.T})
    with pytest.raises(ExportError, match=r"'turned': has .*'again': has .*with --task turned=none --task again=none$"):
        export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=draws)
    with pytest.raises(UsageError, match=r"^--task no=none --task none=none: forward gives no such output"):
        export_module(module, tmp_path / "a", inputs=[SPEC], task=["no=none", "none=none"])


def test_inspect_says_task_class_axis_and_unit(tmp_path: Path) -> None:
    from click.testing import CliRunner

    module = Heads(lambda y, x: {"tokens": y[:, None], "energy": x.sum(1)})
    task = ["regression", "tokens=classification@-1"]
    export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=3, task=task, formats=["torchscript"])
    lines = CliRunner().invoke(inspect, [str(tmp_path / "a")]).output.splitlines()
    shown = {line.split()[0]: " ".join(line.split()[1:]) for line in lines if line.startswith("  tokens.")}
    assert shown["tokens.probs_std"] == "float32 [batch, 1, 6] classification axis 2 probs std of tokens"
    assert shown["tokens.entropy"] == "float32 [batch, 1] classification - entropy of tokens, in nats"
    assert "float32 [batch] regression - the model's own" in " ".join(
        next(line for line in lines if "energy" in line).split()
    )


SPREADS = {"tiny": (0.0, 1e-30), "huge": (0.0, 2.5e38), "beside": (1e4, 1e-2)}
"""An offset and a scale of values of about 1, by what they are in float32."""


def test_tiny_and_huge_and_offset_values_keep_their_moments(tmp_path: Path) -> None:
    """The squares of tiny values vanish in float32, the sum of huge ones overflows, and an offset rounds the mean."""
    torch.manual_seed(0)
    module = Heads(lambda y, x: {name: torch.tanh(y) * scale + offset for name, (offset, scale) in SPREADS.items()})
    result = export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=50, keep_draws=True)
    x = rows(5, 6)
    for client in clients(result.path, names_of(result)).values():
        whole = client({"x": x}, sample_ids=np.arange(5))
        piece = client({"x": x}, sample_ids=np.arange(5), first_draw=20, draws=11)
        for name in SPREADS:
            draws = np.swapaxes(whole[f"{name}.draws"], 0, 1)
            wanted, own = statistics.summarize(draws), statistics.summarize(draws[20:31])
            for statistic in ("mean", "std"):
                np.testing.assert_allclose(whole[f"{name}.{statistic}"], wanted[statistic], rtol=1e-6)
                np.testing.assert_allclose(piece[f"{name}.{statistic}"], own[statistic], rtol=1e-5)


def test_a_class_that_is_out_of_the_question_in_float64(tmp_path: Path) -> None:
    torch.manual_seed(0)
    out = torch.arange(6) == 1
    module = Heads(lambda y, x: y.masked_fill(out, -torch.inf)).double()
    inputs = [SPEC.replace("float32", "float64")]
    result = export_module(module, tmp_path / "a", inputs=inputs, mc_draws=9, task="classification", keep_draws=True)
    for got in results(result, rows(4, 6).astype(np.float64)):
        wanted = statistics.summarize(np.swapaxes(got["output.draws"], 0, 1), classification=True)
        for name in ("probs", "entropy", "mutual_information"):
            np.testing.assert_allclose(got[f"output.{name}"], wanted[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_one_draw_that_is_no_number_shows_in_both_formats(bad: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Heads(lambda y, x: y.masked_fill(y > 0.8, bad))
    result = export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=20, task="classification", keep_draws=True)
    for got in results(result, rows(20, 6)):
        draws = np.swapaxes(got["output.draws"], 0, 1)
        hit = ~np.isfinite(draws).all(0)
        assert 0 < hit.sum() < hit.size
        np.testing.assert_array_equal(got["output.mean"][hit], np.full(hit.sum(), bad, np.float32))
        np.testing.assert_array_equal(np.isnan(got["output.std"]), hit)
        for name in ("probs", "probs_std", "entropy", "mutual_information"):
            assert np.isnan(got[f"output.{name}"][hit.any(1)]).all(), name


def test_parts_of_a_tiny_and_a_huge_deviation_add_up(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for scale in (1e-30, 1e30):
        module = Heads(lambda y, x, scale=scale: {"mu": y * scale, "log": 2 * np.log(scale) + y})
        with torch.no_grad():
            draws = module(torch.ones(3, 6))
        values, logarithms = torch.stack([draws["mu"], 2 * draws["mu"]]), torch.stack([draws["log"]] * 2)
        got = summarize(
            values, classification=False, class_axis=None, event=False, variances=(logarithms, True), keep_draws=False
        )
        wanted = statistics.summarize(values.numpy(), variances=np.exp(logarithms.double().numpy()))
        for name, value in wanted.items():
            np.testing.assert_allclose(got[name].numpy(), value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_entropy_of_a_certain_class_is_zero_and_not_minus_zero(classes: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Heads(lambda y, x: torch.tensor([1e4, -1e4, -1e4])[:classes] + 0 * y, features=classes)
    result = export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=3, task="classification")
    wanted = statistics.summarize(
        np.broadcast_to(np.array([1e4, -1e4, -1e4])[:classes], (3, 2, classes)).copy(), classification=True
    )
    for got in [*results(result, rows(2, 6)), {f"output.{name}": value for name, value in wanted.items()}]:
        for name in ("entropy", "mutual_information"):
            np.testing.assert_array_equal(got[f"output.{name}"], [0, 0])
            assert not np.signbit(got[f"output.{name}"]).any(), name
