"""Recurrent networks over packed sequences, which eager PyTorch sorts and packs and an exported graph runs padded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from deploykit.errors import ExportError
from exporters.capture.padded import Network, pack, pad
from exporters.export import ExportResult, export_module

pytestmark = pytest.mark.slow

INPUTS, RANGES = ("x:float32[batch,steps,6]", "lengths:int64[batch]"), {"lengths": (1, "steps+1")}

Use = Callable[["Packed", Tensor, Tensor], Tensor]


class Packed(nn.Module):
    """``x`` (batch, steps, 6) with a length for each row, packed and given to ``use``."""

    def __init__(self, use: Use, cells: str = "LSTM", *, layers: int = 2, **options: Any) -> None:
        super().__init__()
        self.use, self.drop = use, nn.Dropout(0.2)
        self.cells = getattr(nn, cells)(6, 5, num_layers=layers, dropout=0.3 if layers > 1 else 0.0, **options)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.use(self, self.drop(x) * self.scale, lengths)


def packed(x: Tensor, lengths: Tensor) -> PackedSequence:
    return pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)


def ends(model: Packed, x: Tensor, lengths: Tensor) -> Tensor:
    """All last states of all layers and directions, the cells of an LSTM among them."""
    states = model.cells(packed(x, lengths))[1]
    states = (states,) if isinstance(states, Tensor) else states
    return torch.cat([state.transpose(0, 1).flatten(1) for state in states], 1)


def largest(model: Packed, x: Tensor, lengths: Tensor) -> Tensor:
    steps, _ = pad_packed_sequence(model.cells(packed(x, lengths))[0], batch_first=True, padding_value=-9.0)
    return steps.amax(1)


def mean(model: Packed, x: Tensor, lengths: Tensor) -> Tensor:
    """The lengths as they come back, and steps before rows."""
    values, _ = model.cells(pack_padded_sequence(x.transpose(0, 1), lengths, enforce_sorted=False))
    steps, back = pad_packed_sequence(values)
    return steps.sum(0) / back.unsqueeze(1)


def every_step(model: Packed, x: Tensor, lengths: Tensor) -> Tensor:
    values = model.cells(packed(x, lengths))[0]
    return pad_packed_sequence(values, batch_first=True, total_length=x.shape[1])[0]


def activated(model: Packed, x: Tensor, lengths: Tensor) -> Tensor:
    """Something is done to the packed data, and the result is packed as it was."""
    sequence = packed(x, lengths)
    return model.cells(PackedSequence(F.relu(sequence.data), *sequence[1:]))[1].transpose(0, 1).flatten(1)


def own_start(model: Packed, x: Tensor, lengths: Tensor) -> Tensor:
    layers = model.cells.num_layers * (1 + model.cells.bidirectional)
    start = x[:, 0, :5].unsqueeze(0).repeat(layers, 1, 1)
    states = (start, start * 2) if isinstance(model.cells, nn.LSTM) else start
    ends = model.cells(packed(x, lengths), states)[1]
    return torch.cat([each.transpose(0, 1).flatten(1) for each in ([ends] if isinstance(ends, Tensor) else ends)], 1)


def by_mask(model: Packed, x: Tensor, lengths: Tensor) -> Tensor:
    """Lengths that the module counts itself; ``lengths`` is of no use."""
    real = torch.arange(x.shape[1]) < lengths.unsqueeze(1)
    return ends(model, x, real.sum(1))


CASES: dict[str, Callable[[], nn.Module]] = {
    "LSTM, last states": lambda: Packed(ends),
    "LSTM, both directions, last states": lambda: Packed(ends, layers=3, bidirectional=True),
    "LSTM, every step": lambda: Packed(every_step, bidirectional=True),
    "LSTM with a start of its own": lambda: Packed(own_start, bidirectional=True),
    "GRU, both directions, largest": lambda: Packed(largest, "GRU", bidirectional=True, batch_first=True),
    "GRU with a start of its own": lambda: Packed(own_start, "GRU", bidirectional=True),
    "GRU without biases": lambda: Packed(ends, "GRU", bias=False),
    "GRU of data that was changed": lambda: Packed(activated, "GRU"),
    "RNN, both directions, mean": lambda: Packed(mean, "RNN", bidirectional=True),
    "RNN with relu, lengths that it counts": lambda: Packed(by_mask, "RNN", nonlinearity="relu"),
}


def export(module: nn.Module, path: Path, **options: Any) -> ExportResult:
    torch.manual_seed(0)
    return export_module(module, path, inputs=INPUTS, ranges=RANGES, **options)


def feeds(rows: int, steps: int, padding: float = 0.0) -> dict[str, np.ndarray]:
    """Rows of at most 6 steps; the rest is ``padding``."""
    generator = np.random.default_rng(3)
    lengths = generator.integers(1, 7, rows)
    x = np.full((rows, steps, 6), padding, np.float32)
    x[:, :6] = generator.standard_normal((rows, 6, 6))
    x[np.arange(steps) >= lengths[:, None]] = padding
    return {"x": x, "lengths": lengths}


def run(result: ExportResult, inputs: dict[str, np.ndarray], **controls: Any) -> dict[str, np.ndarray]:
    """Each file called without deploykit; ``draws`` by format."""
    (name,) = (output.name for output in result.manifest.outputs if output.name.endswith(("output", "draws")))
    session = onnxruntime.InferenceSession(result.path / "model.onnx", providers=["CPUExecutionProvider"])
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit.load"):
        module = torch.jit.load(result.path / "model.torchscript.pt")
    found = module(**{key: torch.from_numpy(array) for key, array in inputs.items()})
    return {"onnx": session.run([name], inputs)[0], "torchscript": found[name].numpy()}


QUICK = ("LSTM with a start of its own", "GRU, both directions, largest")
"""What `make test` looks at; `make test-all` all of them."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.exhaustive) for n in CASES])
def test_padding_reaches_nothing_and_moves_no_mask(name: str, tmp_path: Path) -> None:
    """The export itself holds the files against the module, which packs in eager PyTorch, draw by draw."""
    result = export(CASES[name](), tmp_path / "a", mc_draws=3, keep_draws=True)
    assert [(site.module, site.kind) for site in result.manifest.monte_carlo.sites][:2] == [
        ("drop", "dropout"), ("cells", "dropout")
    ]  # fmt: skip
    assert result.manifest.monte_carlo.form == "batched"
    short, long = run(result, feeds(5, 6)), run(result, feeds(5, 9, np.nan))
    for format_name, draws in short.items():
        got = long[format_name][:, :, :6] if name == "LSTM, every step" else long[format_name]
        assert draws.std(axis=1).max() > 1e-3
        np.testing.assert_allclose(got, draws, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"cells": "GRU", "layers": 1}, {"bidirectional": True}])
def test_in_evaluation_a_file_gives_what_packing_gives(options: dict[str, Any], tmp_path: Path) -> None:
    module = Packed(ends, **options).eval()
    result = export(module, tmp_path / "a")
    inputs = feeds(7, 8)
    with torch.no_grad():
        wanted = module(*map(torch.from_numpy, inputs.values())).numpy()
    for got in run(result, inputs).values():
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_large_values_open_no_gate(tmp_path: Path) -> None:
    """What stands before a row, where its last cell state is looked for, is none of it."""
    module = Packed(ends, layers=1).eval()
    result = export(module, tmp_path / "a")
    inputs = feeds(64, 9)
    inputs["x"] *= 1e5
    with torch.no_grad():
        wanted = module(*map(torch.from_numpy, inputs.values())).numpy()
    for got in run(result, inputs).values():
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_an_lstm_that_starts_with_nothing_costs_one_more_input_for_its_last_cells(monkeypatch: Any) -> None:
    """The gate that waits; the columns of a hidden state, as many as it has, are for states that are given."""
    lstm, widths, original = nn.LSTM(6, 5), [], torch._VF.lstm

    def counted(values: Tensor, *rest: Any) -> Any:
        widths.append(values.shape[-1])
        return original(values, *rest)

    monkeypatch.setattr(torch._VF, "lstm", counted)
    x, lengths = torch.randn(3, 4, 6), torch.tensor([4, 1, 2])
    Network(lstm, x, lengths).run(None)
    assert widths == [6, 6 + 1]


LENGTHS = {"int64": torch.tensor([4, 1, 2]), "int32": torch.tensor([4, 1, 2], dtype=torch.int32), "list": [4, 1, 2]}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    ("cells", "options"),
    [
        (nn.RNN, {}), (nn.GRU, {"bias": False}), (nn.LSTM, {}), (nn.LSTM, {"dtype": torch.bfloat16}),
        (nn.LSTM, {"bias": False, "proj_size": 3}),
    ],
)  # fmt: skip
def test_a_network_over_padded_rows_gives_what_packing_gives(
    cells: Any, options: dict[str, Any], layers: int, bidirectional: bool
) -> None:
    """Called by itself, with states that it is given and without; its dropout is off."""
    network = cells(6, 5, layers, bidirectional=bidirectional, dropout=0.3 if layers > 1 else 0.0, **options).eval()
    x = torch.randn(3, 4, 6, dtype=options.get("dtype"), generator=torch.Generator().manual_seed(1))
    sizes = (options.get("proj_size", 5), 5)[: 2 if cells is nn.LSTM else 1]
    bounds = {"rtol": 0, "atol": 0.01 if x.dtype == torch.bfloat16 else 1e-6}
    start = tuple(torch.randn(layers * (1 + bidirectional), 3, size, dtype=x.dtype) for size in sizes)
    for states in (None, start):
        given = states if states is None or cells is nn.LSTM else states[0]
        outputs, wanted = network(packed(x, LENGTHS["int64"]), given)
        values, found = Network(network, x, LENGTHS["int64"]).run(states)
        real = pad_packed_sequence(outputs, batch_first=True)[0]
        torch.testing.assert_close(pad(PackedSequence(values, LENGTHS["int64"]), True, 0.0, None)[0], real, **bounds)
        for got, each in zip(found, wanted if cells is nn.LSTM else [wanted], strict=True):
            torch.testing.assert_close(got, each, **bounds)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_what_is_padded_again_is_what_packing_gives(shape: tuple[int, ...], batch_first: bool, lengths: str) -> None:
    x = torch.randn(3, 4, *shape, generator=torch.Generator().manual_seed(1)).to(torch.float64)
    x = x if batch_first else x.transpose(0, 1)
    theirs = pack_padded_sequence(x, LENGTHS[lengths], batch_first, enforce_sorted=False)
    for total in (None, 6):
        wanted, counts = pad_packed_sequence(theirs, batch_first, -0.1, total)
        got, told = pad(pack(x, LENGTHS[lengths], batch_first), batch_first, -0.1, total)
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
        torch.testing.assert_close(told, counts)


def test_weights_that_are_computed_in_every_call_are_the_present_ones() -> None:
    network = nn.utils.parametrizations.weight_norm(nn.GRU(6, 5), "weight_hh_l0")
    with torch.no_grad():
        network.parametrizations.weight_hh_l0.original0.mul_(3)
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    found = Network(network, x, LENGTHS["int64"]).run(None)[1][0]
    torch.testing.assert_close(found, network(packed(x, LENGTHS["int64"]))[1])


def test_a_start_that_is_not_finite_ends_as_with_packing() -> None:
    lstm, x, lengths = nn.LSTM(6, 5), torch.randn(3, 4, 6), torch.tensor([4, 1, 2])
    start = torch.randn(1, 3, 5), torch.randn(1, 3, 5)
    start[0][0, 1, 2] = torch.inf
    _, wanted = lstm(packed(x, lengths), start)
    assert torch.isfinite(wanted[1]).all()
    for got, each in zip(Network(lstm, x, lengths).run(start)[1], wanted, strict=True):
        torch.testing.assert_close(got, each, rtol=0, atol=1e-5)


def test_a_projection_is_torchscripts_own(tmp_path: Path) -> None:
    module = Packed(ends, layers=1, proj_size=3, bidirectional=True)
    result = export(module, tmp_path / "a", mc_draws=2, formats=["torchscript"])
    assert result.max_error < 1e-5
    with pytest.raises(ExportError, match="cells: an LSTM with proj_size=3 has no ONNX form"):
        export(module, tmp_path / "b", mc_draws=2)


def test_a_row_of_no_steps_gives_the_states_that_it_starts_with(tmp_path: Path) -> None:
    """torch refuses a length of 0; a file must not give the state behind a step of the padding."""
    result = export(Packed(ends, layers=1, bidirectional=True), tmp_path / "a")
    inputs = feeds(4, 6) | {"lengths": np.asarray([3, 0, 6, 1])}
    for got in run(result, inputs).values():
        np.testing.assert_allclose(got[1], 0, rtol=0, atol=1e-6)
        assert np.abs(got[[0, 2, 3]]).min(axis=1).max() > 1e-4


def test_packing_is_what_it_was_after_an_export_and_after_a_refusal(tmp_path: Path) -> None:
    module = Packed(ends).eval()
    inputs = [torch.from_numpy(array) for array in feeds(3, 6).values()]
    before = [pack_padded_sequence.__code__, pad_packed_sequence.__code__, nn.LSTM.forward, nn.GRU.forward]
    with torch.no_grad():
        wanted = module(*inputs)
        export(module, tmp_path / "a", formats=["torchscript"])
        with pytest.raises(ExportError):
            export(Packed(as_list), tmp_path / "b")
        assert torch.equal(module(*inputs), wanted)
    assert before == [pack_padded_sequence.__code__, pad_packed_sequence.__code__, nn.LSTM.forward, nn.GRU.forward]


def without_total_length(model: Packed, x: Tensor, lengths: Tensor) -> Tensor:
    return pad_packed_sequence(model.cells(packed(x, lengths))[0], batch_first=True)[0].mean(1)


def counted(model: Packed, x: Tensor, _: Tensor) -> Tensor:
    """Lengths that are all the same but where there is padding, of which random inputs have none."""
    lengths = (x.abs().sum(-1) > 0).sum(1).clamp(min=1)
    return pad_packed_sequence(model.cells(packed(x, lengths))[0], batch_first=True)[0].mean(1)


def of_all_data(model: Packed, x: Tensor, lengths: Tensor) -> Tensor:
    return x.sum(1) + model.cells(packed(x, lengths))[0].data.sum()


def sorted_by_itself(model: Packed, x: Tensor, lengths: Tensor) -> Tensor:
    ordered, order = lengths.sort(descending=True)
    last = model.cells(pack_padded_sequence(x[order], ordered, batch_first=True))[1][0][-1]
    return last[order.argsort()]


def dropped_data(model: Packed, x: Tensor, lengths: Tensor) -> Tensor:
    sequence = packed(x, lengths)
    return model.cells(PackedSequence(model.drop(sequence.data), *sequence[1:]))[1][0][-1]


def as_list(model: Packed, x: Tensor, lengths: Tensor) -> Tensor:
    sequence = pack_padded_sequence(x, lengths.tolist(), batch_first=True, enforce_sorted=False)
    return model.cells(sequence)[1][0][-1]


def from_list(model: Packed, x: Tensor, lengths: Tensor) -> Tensor:
    return model.cells(pack_sequence([row[:n] for row, n in zip(x, lengths, strict=True)], enforce_sorted=False))[1][0][
        -1
    ]


LONGEST = (
    r"\(root\): packs sequences, and an output depends on the length of the longest row.*total_length=x.shape\[1\]"
)
LISTS = r"\(root\) \(test_packing.py:\d+: .*path depends on the values.*lengths, each as a tensor and not as a list"


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (without_total_length, LONGEST),
        (counted, LONGEST),
        (of_all_data, LONGEST),
        (dropped_data, r"drop: draws dropout in another shape.*draw before pack_padded_sequence"),
        (
            sorted_by_itself,
            r"rows of a batch would influence each other.*pack_padded_sequence takes enforce_sorted=False",
        ),
        (as_list, LISTS),
        (from_list, LISTS),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(use: Use, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export(Packed(use), tmp_path / "a", mc_draws=2)
    assert list(tmp_path.iterdir()) == []
