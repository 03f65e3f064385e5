"""The gate before an artifact is written refuses files that are wrong on purpose, whatever is wrong with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxscript import opset18
from torch import Tensor, nn

from deploykit.errors import ParityError
from exporters import export
from exporters.noise import noise_ops
from exporters.onnx_format import file
from exporters.parity import check_parity

Arrays = dict[str, np.ndarray[Any, Any]]
Client = Callable[[Arrays, dict[str, Any]], Arrays]

SPEC, DRAWS, STEPS = "x:float32[batch,steps,4]", 6, 12


class Net(nn.Module):
    """Two sites, a dimension besides the batch, and statistics of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 32), nn.Linear(32, 3)
        self.first, self.second = nn.Dropout(0.1), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.second(torch.relu(self.first(self.body(x)).mean(1)))
        return {"logits": self.head(hidden), "value": hidden, "noise": hidden.square() + 1}


def export_net(path: Path) -> export.ExportResult:
    torch.manual_seed(0)
    return export.export_module(
        Net(), path, inputs=[SPEC], mc_draws=DRAWS, task="logits=classification", variance={"value": "noise"},
        formats=["torchscript"], seed=5,
    )  # fmt: skip


class Gate:
    """What the export hands over to the gate, so that another client can be put there."""

    def __init__(self, path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export, "check_parity", self._held)
            self.result = export_net(path)

    def _held(self, clients: dict[str, Client], subject: Any, inputs: Any, tolerance: float) -> Any:
        self.client, self.subject, self.inputs, self.tolerance = clients["torchscript"], subject, inputs, tolerance
        return check_parity(clients, subject, inputs, tolerance)

    def check(self, client: Client) -> Any:
        return check_parity({"planted": client}, self.subject, self.inputs, self.tolerance)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    return Gate(tmp_path_factory.mktemp("gate") / "a")


Change = Callable[[Arrays, dict[str, Any]], dict[str, Any]]

CONTROLS: dict[str, Change] = {
    "the seed is ignored": lambda inputs, given: {"seed": 5},
    "draws begin at the first": lambda inputs, given: {"first_draw": 0},
    "draws begin one too late": lambda inputs, given: {"first_draw": given.get("first_draw", 0) + 1},
    "sample ids are places in the batch": lambda inputs, given: {"sample_ids": np.arange(len(inputs["x"]))},
    "sample ids have 32 bits": lambda inputs, given: {"sample_ids": given["sample_ids"] % 2**32} if given else {},
    "all rows have one mask": lambda inputs, given: {"sample_ids": np.zeros(len(inputs["x"]), np.int64)},
    "the number of draws is ignored": lambda inputs, given: {"draws": DRAWS},
    "a draw is missing": lambda inputs, given: {"draws": given.get("draws", DRAWS) - 1},
    "another default seed": lambda inputs, given: {} if given else {"seed": 0},
    "another default number of draws": lambda inputs, given: {} if given else {"draws": 5},
    "other default sample ids": lambda inputs, given: {} if given else {"sample_ids": np.array([1, 2])},
}


@pytest.mark.parametrize("defect", CONTROLS)
def test_a_file_that_takes_its_controls_for_others_is_refused(gate: Gate, defect: str) -> None:
    def client(inputs: Arrays, controls: dict[str, Any]) -> Arrays:
        return gate.client(inputs, {**controls, **CONTROLS[defect](inputs, controls)})

    with pytest.raises(ParityError, match=r"format planted, \{'batch': .*allowed is 0\.0001\. Nothing was written"):
        gate.check(client)


OUTPUTS: dict[str, tuple[str, Callable[[Arrays, Any], Any]]] = {
    "a deviation over all draws": ("value.std", lambda found, draws: found * np.float32(((draws - 1) / draws) ** 0.5)),
    "the variance for the deviation": ("value.std", lambda found, draws: found**2),
    "a mean that is off by a thousandth": ("value.mean", lambda found, draws: found * 1.001),
    "entropy in bits": ("logits.entropy", lambda found, draws: found / np.float32(np.log(2))),
    "probabilities of another class": ("logits.probs", lambda found, draws: np.roll(found, 1, -1)),
    "no mutual information": ("logits.mutual_information", lambda found, draws: found * 0),
    "a deviation of logits for that of probabilities": ("logits.probs_std", lambda found, draws: found * 4),
    "the variance that the model sees": ("value.aleatoric_std", lambda found, draws: found**2),
    "one part of the deviation alone": ("value.total_std", lambda found, draws: found * 0.99),
    "rows in another order": ("value.mean", lambda found, draws: found[::-1].copy()),
    "a value that is none": ("value.mean", lambda found, draws: np.where(found == found.max(), np.nan, found)),
    "a column too many": ("value.mean", lambda found, draws: np.repeat(found, 2, -1)),
    "another type": ("value.mean", lambda found, draws: found.astype(np.float64)),
}


@pytest.mark.parametrize("defect", OUTPUTS)
def test_a_file_with_another_statistic_is_refused(gate: Gate, defect: str) -> None:
    name, change = OUTPUTS[defect]

    def client(inputs: Arrays, controls: dict[str, Any]) -> Arrays:
        found = gate.client(inputs, controls)
        return {**found, name: change(found[name], controls.get("draws", DRAWS))}

    with pytest.raises(ParityError, match=rf"format planted, .*{name}"):
        gate.check(client)


@pytest.mark.parametrize(
    ("dimension", "sizes"),
    [("batch", lambda n: n == 1), ("batch", lambda n: n == 2), ("batch", lambda n: n % 2 == 1 and n > 3),
     ("batch", lambda n: n > 32), ("steps", lambda n: n > STEPS), ("steps", lambda n: n < STEPS)],
)  # fmt: skip
def test_a_file_that_is_wrong_for_some_sizes_only_is_refused(gate: Gate, dimension: str, sizes: Any) -> None:
    def client(inputs: Arrays, controls: dict[str, Any]) -> Arrays:
        found = gate.client(inputs, controls)
        factor = 1.01 if sizes(inputs["x"].shape[("batch", "steps").index(dimension)]) else 1
        return {name: value * factor for name, value in found.items()}

    with pytest.raises(ParityError, match="format planted"):
        gate.check(client)


class Covered(nn.Module):
    """As many of ``b`` as ``a`` needs: two sizes that decide together."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.mean(1) * -(-x.shape[1] // y.shape[1]) + y.mean(1)


def test_a_file_that_is_wrong_only_where_two_sizes_differ_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = ["x:float32[batch,a,4]", "y:float32[batch,b,4]"]
    monkeypatch.setattr(file, "quotient_of_sizes", lambda value, other: opset18.Div(value, other))
    with pytest.raises(ParityError, match=r"format onnx, \{'batch': 2, 'a': 17, 'b': 9\}: output"):
        export.export_module(Covered(), tmp_path / "a", inputs=inputs)


def test_a_file_that_fails_is_refused_with_the_sizes(gate: Gate) -> None:
    def client(inputs: Arrays, controls: dict[str, Any]) -> Arrays:
        if len(inputs["x"]) == 7:
            raise RuntimeError("no kernel")
        return gate.client(inputs, controls)

    with pytest.raises(ParityError, match=r"format planted: .* fails with \{'batch': 7, 'steps': 12\}: no kernel"):
        gate.check(client)


def test_a_right_file_passes_and_the_worst_errors_are_recorded(gate: Gate) -> None:
    """With a known error below the tolerance, in one output and one trial."""

    def client(inputs: Arrays, controls: dict[str, Any]) -> Arrays:
        found = gate.client(inputs, controls)
        return {**found, "value.mean": found["value.mean"] * (1 + 5e-5 * (len(inputs["x"]) == 64))}

    worst = max(gate.check(client), key=lambda record: record.max_error)
    assert (worst.format, worst.output, worst.batch) == ("planted", "value.mean", 64)
    assert worst.max_error == pytest.approx(5e-5, rel=0.05)
    assert gate.result.max_error < 1e-5


MASKS: dict[str, Callable[..., Any]] = {
    "a probability that is off by 2 %": lambda keep: lambda rows, keys, p: keep(rows, keys, p * 1.02),
    "masks upside down": lambda keep: lambda rows, keys, p: ~keep(rows, keys, p),
}


@pytest.mark.parametrize("defect", MASKS)
def test_masks_that_are_wrong_are_refused(defect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each form that a file may have, or the other one would be taken."""
    monkeypatch.setattr(noise_ops, "keep", MASKS[defect](noise_ops.keep))
    with pytest.raises(ParityError, match="format torchscript"):
        export_net(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


class Centred(nn.Module):
    """One step has no neighbours: code that torch never sees, as it takes dynamic sizes for 2 or more."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[self.axis] > 1:
            x = x - x.mean(self.axis, keepdim=True)
        return x.amax((1, 2))


@pytest.mark.parametrize(("axis", "name"), [(1, "steps"), (2, "lanes")])
@pytest.mark.parametrize("draws", [None, 3])
def test_a_dimension_that_goes_another_way_at_size_one_is_bounded(
    tmp_path: Path, axis: int, name: str, draws: int | None
) -> None:
    result = export.export_module(
        nn.Sequential(nn.Dropout(0.3), Centred(axis)), tmp_path / "a", inputs=["x:float32[batch,steps,lanes]"],
        mc_draws=draws, formats=["torchscript"],
    )  # fmt: skip
    assert result.manifest.bounds == {name: {"min": 2}}
    assert any(note.startswith(f"dimension {name}: a size of 1 is refused") for note in result.notes)


class Changes(nn.Module):
    """From step to step, over which a recurrent network runs: of a single step there is none."""

    def __init__(self, order: int) -> None:
        super().__init__()
        self.drop, self.rnn, self.order = nn.Dropout(0.3), nn.GRU(4, 3, batch_first=True), order

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.rnn(self.drop(x).diff(self.order, dim=1))[0][:, -1]
        return found


@pytest.mark.parametrize("order", [0, 1])
def test_a_size_that_the_module_refuses_is_bounded_and_not_tried_in_a_runtime(order: int, tmp_path: Path) -> None:
    """onnxruntime ends the process where a GRU runs over no steps."""
    result = export.export_module(Changes(order), tmp_path / "a", inputs=["x:float32[batch,steps,4]"], mc_draws=3)
    assert result.manifest.bounds == {"steps": {"min": order + 1}}
    assert len(result.notes) == order


class At(nn.Module):
    """A step of each row, by its place."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        found: Tensor = self.last(x[torch.arange(x.shape[0]), place])
        return found


def test_places_that_are_drawn_for_more_steps_bound_none(tmp_path: Path) -> None:
    """Of a row of one step there is the first place."""
    inputs = ["x:float32[batch,steps,4]", "place:int64[batch]"]
    result = export.export_module(
        At(), tmp_path / "a", inputs=inputs, ranges={"place": (0, 9)}, formats=["torchscript"]
    )  # fmt: skip
    assert result.manifest.bounds == {}
