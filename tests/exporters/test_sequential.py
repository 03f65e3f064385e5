"""Graphs that cannot run with the draws along the batch: one draw after the other, in a loop inside of the file."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from click.testing import CliRunner
from torch import Tensor, nn

from deploykit import masks
from deploykit.artifact import Artifact
from deploykit.cli.artifact import inspect
from deploykit.errors import ExportError
from exporters.eager.dropouts import answered_dropouts
from exporters.export import export_module
from tests.exporters.models import Wrapped
from tests.exporters.test_monte_carlo import SPEC, clients, names_of

Arrays = dict[str, np.ndarray[Any, Any]]
IDS = np.array([3, 2**40, 7, 8, 0, -5, 12], np.int64)
X = np.random.default_rng(1).standard_normal((7, 6)).astype(np.float32)


class Model(nn.Module):
    """Each construct on its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.drop = nn.Linear(6, 8), nn.Linear(8, 3), nn.Dropout(0.3)
        self.conv, self.norm, self.table = nn.Conv1d(8, 3, 2), nn.LayerNorm(8), nn.Embedding(4, 8)
        self.cells, self.channels = nn.LSTM(8, 3, batch_first=True), nn.Dropout2d(0.4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = torch.stack([self.first(x), self.first(x * 2), self.first(-x)], 1)
        return {name: construct(self, tokens) for name, construct in CONSTRUCTS.items()} | {"first": tokens[:, 0]}


def recurrent_weight(model: Model, tokens: Tensor) -> Tensor:
    start, cells = tokens.new_zeros(1, tokens.shape[0], 3), model.cells
    weights = [cells.weight_ih_l0, model.drop(cells.weight_hh_l0), cells.bias_ih_l0, cells.bias_hh_l0]
    return torch.lstm(tokens, (start, start), weights, True, 1, 0.0, False, False, True)[0].mean(1)


def one_token(model: Model, tokens: Tensor) -> Tensor:
    """As classifiers do that read the last token: rows are chosen by their number in the batch."""
    chosen = (tokens[:, 0, 0] > 0).long() + (tokens[:, 0, 1] > 0).long()
    return model.second(model.drop(tokens))[torch.arange(tokens.shape[0]), chosen]


def written(model: Model, tokens: Tensor) -> Tensor:
    """Memory that exists before the draw, and a scale made of a size."""
    memory = tokens.new_zeros(tokens.shape[0], 3)
    memory[:, :2] = model.drop(tokens)[:, 0, :2] * tokens.shape[1] ** -0.5
    return memory


def opened_masks(model: Model, tokens: Tensor) -> Tensor:
    """As OneFormer's attention masks: what would see nothing sees all; heads are folded into the batch."""
    heads = model.drop(tokens).unflatten(-1, (4, 2)).transpose(1, 2).flatten(0, 1)
    hidden = heads < 0.2
    hidden[torch.where(hidden.sum(-1) == hidden.shape[-1])] = False
    return heads.masked_fill(hidden, 0.0).view(tokens.shape[0], 4, 3, 2).sum(2)


def emptied_places(model: Model, tokens: Tensor) -> Tensor:
    """As padding is emptied: its places are found before any draw, among the tokens of all rows."""
    flat = model.drop(tokens).flatten(0, 1)
    flat[torch.where(tokens.flatten(0, 1)[:, 0] > 0)[0]] = 0.0
    return flat.view(tokens.shape[0], 3, 8).sum(1)


CONSTRUCTS: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "activations": lambda m, t: m.second(m.drop(t)).mean(1),
    "convolution_weight": lambda m, t: F.conv1d(t.transpose(1, 2), m.drop(m.conv.weight), m.conv.bias).mean(2),
    "norm_weight": lambda m, t: m.second(F.layer_norm(t, (8,), m.drop(m.norm.weight), m.norm.bias)).mean(1),
    "recurrent_weight": recurrent_weight,
    "summed_embedding": lambda m, t: t[:, 0] * m.drop(m.table(torch.arange(3))).sum(0),
    "channels_before_the_batch": lambda m, t: m.channels(t.permute(1, 2, 0)[..., None]).squeeze(-1).mean(0).T,
    "one_token": one_token,
    "written": written,
    "opened_masks": opened_masks,
    "emptied_places": emptied_places,
}


def oracle(module: nn.Module, ids: np.ndarray[Any, Any], seed: int, draws: range) -> Arrays:
    found: list[Arrays] = []
    for draw in draws:
        site = iter(range(20))

        def keep(_kind: str, shape: Any, p: float, draw: int = draw, site: Any = site) -> Tensor:
            rows = ids if shape[0] == len(ids) else np.zeros(1, np.int64)
            kept = masks.keep_mask(seed, next(site), rows, [draw], int(np.prod(shape)) // len(rows), p)
            return torch.from_numpy(kept[0].reshape(tuple(shape)))

        with torch.no_grad(), answered_dropouts(keep):
            found.append({name: value.numpy() for name, value in module(torch.from_numpy(X.copy())).items()})
    return {name: np.stack([each[name] for each in found]) for name in found[0]}


class Exported:
    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.module = Model().eval()
        self.result = export_module(self.module, folder / "a", inputs=[SPEC], mc_draws=5, keep_draws=True)
        self.clients = clients(self.result.path, names_of(self.result))
        self.wanted = oracle(self.module.train(), IDS, 9, range(2, 6))

    def draws(self, client: str, rows: slice = slice(None)) -> Arrays:
        return self.clients[client]({"x": X[rows]}, sample_ids=IDS[rows].copy(), seed=9, first_draw=2, draws=4)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("sequential"))


@pytest.mark.parametrize("client", ["onnx", "torchscript"])
def test_every_draw_equals_the_module_with_numpy_masks(exported: Exported, client: str) -> None:
    got = exported.draws(client)
    for name in CONSTRUCTS:
        wanted = exported.wanted[name]
        assert (wanted.std(0).max(0) > 1e-4).any(), f"the oracle of {name} must be random"
        draws = np.swapaxes(got[f"{name}.draws"], 0, 1)
        np.testing.assert_allclose(draws, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max(), err_msg=name)
        np.testing.assert_allclose(got[f"{name}.mean"], wanted.mean(0), rtol=0, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(got["first"], exported.wanted["first"][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("client", ["onnx", "torchscript"])
def test_a_row_is_the_same_alone_and_pieces_are_the_same_as_the_whole(exported: Exported, client: str) -> None:
    together = exported.draws(client)
    apart = exported.draws(client, slice(4, 5))
    piece = exported.clients[client]({"x": X}, sample_ids=IDS.copy(), seed=9, first_draw=4, draws=1)
    for name in (f"{construct}.draws" for construct in CONSTRUCTS):
        np.testing.assert_allclose(apart[name], together[name][4:5], rtol=0, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(piece[name], together[name][:, 2:3], rtol=0, atol=1e-5, err_msg=name)


def test_the_manifest_and_inspect_say_the_form_and_why(exported: Exported) -> None:
    section = exported.result.manifest.monte_carlo
    assert section is not None
    assert section.form == "sequential"
    assert section.form_reason is not None
    shown = CliRunner().invoke(inspect, [str(exported.result.path)])
    assert shown.exit_code == 0, shown.output
    assert "the rest one draw at a time" in shown.output
    assert section.form_reason in shown.output


def test_what_comes_before_the_first_dropout_stands_outside_of_the_loop(exported: Exported) -> None:
    graph = onnx.load(exported.result.path / "model.onnx").graph
    (loop,) = (node for node in graph.node if node.op_type == "Scan")
    body = loop.attribute[[attribute.name for attribute in loop.attribute].index("body")].g
    dense = ("Gemm", "MatMul")
    assert sum(node.op_type in dense for node in graph.node) == 3, "the first layer on three tokens"
    assert any(node.op_type == "Conv" for node in body.node)
    assert not any(node.op_type == "Conv" for node in graph.node)


@pytest.mark.parametrize(
    ("construct", "reason"),
    [
        ("convolution_weight", "aten.conv1d.default takes a weight or a constant behind a dropout"),
        ("recurrent_weight", "aten.lstm.input takes a weight that differs between draws"),
        ("opened_masks", r"where \(aten.where.default\): has no batch dimension but depends on a dropout"),
        (
            "emptied_places",
            r"where \(aten.where.default\): finds places for values that depend on a dropout",
        ),
        ("channels_before_the_batch", "channels: has one mask for all rows"),
    ],
)
def test_each_has_its_reason(construct: str, reason: str, tmp_path: Path) -> None:
    class Single(Model):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            tokens = torch.stack([self.first(x), self.first(x * 2), self.first(-x)], 1)
            return CONSTRUCTS[construct](self, tokens)

    torch.manual_seed(0)
    result = export_module(Single().eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3, formats=["torchscript"])
    section = result.manifest.monte_carlo
    assert section is not None
    assert re.search(reason, section.form_reason or "")


def test_a_loop_that_the_user_wrote_keeps_its_meaning(tmp_path: Path) -> None:
    """Without --mc-draws: every pass draws a weight of its own, and the file gives the module's own output."""

    class Passes(Model):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            self.drop.train()
            steps = self.first(x)[..., None].expand(-1, -1, 2)
            return {"y": torch.stack([F.conv1d(steps, self.drop(self.conv.weight)) for _ in range(5)]).std(0)[..., 0]}

    torch.manual_seed(0)
    module = Passes().eval()
    result = export_module(module, tmp_path / "a", inputs=[SPEC])
    wanted = oracle(module, IDS, 3, range(1))["y"][0]
    for client in clients(result.path, names_of(result)).values():
        got = client({"x": X}, sample_ids=IDS.copy(), seed=3)["y"]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


class Scaled(nn.Module):
    """Numbers made of sizes that only a file knows, one of them of an input that is of no other use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv1d(6, 3, 1), nn.Dropout(0.3)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        rows, steps = x.shape[:2]
        found = F.conv1d(x.transpose(1, 2), self.drop(self.conv.weight)).reshape(3 * rows, steps)
        return (found * (steps * 0.5) ** -0.5 / beside.shape[1]).view(rows, 3, steps).sum(2)


def test_numbers_made_of_sizes_in_the_loop_are_those_of_the_call(tmp_path: Path) -> None:
    """The export itself holds the files against the module, at several sizes."""
    inputs = ["x:float32[batch,steps,6]", "beside:float32[batch,others]"]
    result = export_module(Scaled().eval(), tmp_path / "a", inputs=inputs, mc_draws=3)
    assert result.manifest.monte_carlo is not None
    assert result.manifest.monte_carlo.form == "sequential"


class InPlace(nn.Module):
    """Draws that are written into the input, and into a part of other memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.drop = nn.Linear(6, 8), nn.Conv1d(8, 3, 1), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x[:, :3] = self.drop(x[:, :3])
        memory = self.first(x)
        F.dropout(memory[:, :4], 0.3, self.training, inplace=True)
        return {"y": F.conv1d(memory[..., None], self.drop(self.conv.weight)).squeeze(2)}


def test_what_one_draw_writes_no_other_draw_reads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = InPlace().eval()
    result = export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=3, keep_draws=True)
    assert result.manifest.monte_carlo is not None
    assert result.manifest.monte_carlo.form == "sequential"
    wanted = np.swapaxes(oracle(module.train(), IDS, 9, range(4))["y"], 0, 1)
    for client in clients(result.path, names_of(result)).values():
        given = X.copy()
        got = client({"x": given}, sample_ids=IDS.copy(), seed=9, draws=4)["y.draws"]
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        np.testing.assert_array_equal(given, X)
    with Artifact.open(result.path) as opened:
        assert opened.manifest == result.manifest


def over_the_batch(owner: nn.Module, x: Tensor) -> Tensor:
    """Rows mix before the dropout, where all draws see the same mixture."""
    return F.dropout(x - x.mean(0), 0.5, owner.training)


def by_place(owner: nn.Module, x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, owner.training) + torch.arange(x.shape[0])[:, None]


def three_folded(owner: nn.Module, x: Tensor) -> Tensor:
    """The batch between two other dimensions, so that nobody knows which elements of the mask belong to a row."""
    folded = x.view(-1, 2, 2, 2).transpose(0, 1).reshape(-1, 2)
    return F.dropout(folded, 0.5, owner.training).view(2, -1, 2, 2).transpose(0, 1).reshape(-1, 8)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (over_the_batch, r"inner \(aten.*\): rows of a batch would influence each other: in output output"),
        (by_place, r"inner \(aten\.arange\.default\): counts the rows of the batch, and an output depends on"),
        (three_folded, r"inner: dropout: .*is folded between two other dimensions"),
    ],
)
def test_rows_that_do_not_stand_alone_are_refused(function: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export_module(Wrapped(function).eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3)
    assert list(tmp_path.iterdir()) == []


def test_statistics_of_the_batch_in_evaluation_are_refused_by_name(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Dropout(0.5))
    with pytest.raises(ExportError, match=r"1 \(aten.batch_norm.default\): rows of a batch would influence each other"):
        export_module(module.eval(), tmp_path / "a", inputs=["input:float32[batch,6]"], mc_draws=3)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_what_a_format_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = nn.LSTM(6, 4, 2, dropout=0.5, proj_size=2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.cells(x[:, None])[0].mean(1)

    with pytest.raises(ExportError, match=r"cells: an LSTM with proj_size=2 has no ONNX form"):
        export_module(Projected().eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3)


def test_functions_of_single_rows_are_refused_by_name(tmp_path: Path) -> None:
    class Mapped(Model):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return torch.vmap(self.second)(self.drop(self.first(x)))

    class Drawn(Model):
        """Not even a graph can be made of it."""

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return torch.vmap(lambda row: self.second(self.drop(row)), randomness="different")(self.first(x))

    for kind in (Mapped, Drawn):
        with pytest.raises(ExportError, match=r"^\S+.*: torch.vmap and torch.func cannot be exported"):
            export_module(kind().eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3)
