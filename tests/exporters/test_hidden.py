"""What an export does not see at first sight: draws, seeds, generators and rows that it must find or refuse."""

import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import deploykit
from deploykit.errors import ExportError, UsageError
from exporters.export import ExportResult, export_module

SPEC = "x:float32[batch,8]"
FILE_GENERATOR = np.random.default_rng(0)


class Helper:
    """What a module may keep its generator in."""

    def __init__(self) -> None:
        self.generators = {"skip": np.random.RandomState(0)}


class Body(nn.Module):
    """A function between a layer with a dropout and another layer."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(8, 8), nn.Dropout(0.3), nn.Linear(8, 3)
        self.own, self.pythons = np.random.default_rng(0), random.Random(0)
        self.helper = Helper()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def exported(module: nn.Module, path: Path, **options: Any) -> ExportResult:
    """The quicker format, as what is asked here is the capture's business; other tests write both."""
    given = {"inputs": [SPEC], "mc_draws": 3, "formats": ["torchscript"], **options}
    return export_module(module.eval(), path / "a", **given)


class TracksByName(nn.Module):
    """Only called as batch norm calls its flag."""

    track_running_stats = True

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


class Standardised(nn.Module):
    """Noise in training beside statistics that only an owner changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        centred: Tensor = x - self.running_mean
        return centred + torch.randn_like(x) if self.training else centred


class NormThatDrops(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


class OwnNorm(nn.BatchNorm1d):
    """Code of its own, and nothing drawn."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize(("kind", "site"), [(TracksByName, "dropout"), (Standardised, "normal")])
@pytest.mark.parametrize("beside", [[], [nn.Dropout(0.1)]])
def test_draws_of_what_looks_like_a_norm_are_found(
    tmp_path: Path, kind: Any, site: str, beside: list[nn.Module]
) -> None:
    section = exported(nn.Sequential(kind(), *beside, nn.Linear(8, 3)), tmp_path).manifest.monte_carlo
    assert section is not None
    assert [found.kind for found in section.sites] == [site, *("dropout" for _ in beside)]


@pytest.mark.parametrize("wrap", [AveragedModel, lambda body: nn.Sequential(OrderedDict(module_0=body))])
def test_draws_of_what_looks_like_a_norm_are_found_under_names_that_begin_with_module(
    tmp_path: Path, wrap: Any
) -> None:
    section = exported(wrap(nn.Sequential(TracksByName(), nn.Dropout(0.1))), tmp_path).manifest.monte_carlo
    assert section is not None
    assert len({found.module for found in section.sites}) == 2


@pytest.mark.parametrize("beside", [[], [nn.Dropout(0.1)]])
def test_a_norm_that_drops_is_refused_by_name(tmp_path: Path, beside: list[nn.Module]) -> None:
    with pytest.raises(ExportError, match=r"training mode changes more than the dropouts \(0\b"):
        exported(nn.Sequential(NormThatDrops(8), *beside, nn.Linear(8, 3)), tmp_path)


def test_a_norm_of_the_users_own_that_draws_nothing_stays_in_evaluation(tmp_path: Path) -> None:
    norm = OwnNorm(8)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    section = exported(nn.Sequential(norm, nn.Dropout(0.5), nn.Linear(8, 3)), tmp_path).manifest.monte_carlo
    assert section is not None
    assert [found.module for found in section.sites] == ["1"]
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def seeded(owner: Body, x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        table = torch.randn(8, 8)
    return owner.last(owner.drop(owner.first(x @ table)))  # type: ignore[no-any-return]


def seeded_by_state(owner: Body, x: Tensor) -> Tensor:
    torch.set_rng_state(torch.Generator().manual_seed(3).get_state())
    return owner.last(owner.first(x) + torch.randn_like(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("function", [seeded, seeded_by_state])
@pytest.mark.parametrize("draws", [None, 3])
def test_noise_with_a_seed_of_its_own_is_refused(tmp_path: Path, function: Any, draws: int | None) -> None:
    body, state = Body(function), torch.get_rng_state()
    with pytest.raises(ExportError, match=r"\(root\): randn\w*: draws from a seed that its own code sets"):
        exported(body, tmp_path, mc_draws=draws)
    assert torch.equal(torch.get_rng_state(), state)


def same_mask_by_state(owner: Body, x: Tensor) -> Tensor:
    """One mask for two streams, as reversible networks have it."""
    state = torch.get_rng_state()
    first = owner.drop(owner.first(x))
    torch.set_rng_state(state)
    return owner.last(first + owner.drop(x))  # type: ignore[no-any-return]


def same_mask_by_fork(owner: Body, x: Tensor) -> Tensor:
    with torch.random.fork_rng():
        first = owner.drop(owner.first(x))
    return owner.last(first + owner.drop(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("function", [same_mask_by_state, same_mask_by_fork])
def test_a_mask_that_is_drawn_again_on_purpose_is_refused(tmp_path: Path, function: Any) -> None:
    with pytest.raises(ExportError, match=r"^drop: \w+: draws once more what was drawn before"):
        exported(Body(function), tmp_path)


class Scheduled(nn.Module):
    """Drops more in every call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return F.dropout(x, 0.1 * self.calls, self.training)


class Keeps(nn.Module):
    """One mask until it is taken away."""

    mask = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.mask is None:
            self.mask = torch.bernoulli(torch.full((1, 8), 0.6)) / 0.6
        return x if self.mask is None else x * self.mask


@pytest.mark.parametrize("kind", [Scheduled, Keeps])
def test_draws_that_calls_before_decide_are_refused_by_name(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(ExportError, match=r"^1: does not draw in every call what it drew when it was captured"):
        exported(nn.Sequential(nn.Linear(8, 8), kind(), nn.Dropout(0.3)), tmp_path)


def skip_by_own(owner: Body, x: Tensor) -> Tensor:
    return x if owner.own.random() < 1e-4 else owner.last(owner.drop(owner.first(x)))  # type: ignore[no-any-return]


def skip_by_pythons(owner: Body, x: Tensor) -> Tensor:
    return x if owner.pythons.random() < 1e-4 else owner.last(owner.drop(owner.first(x)))  # type: ignore[no-any-return]


def skip_by_helper(owner: Body, x: Tensor) -> Tensor:
    chance = owner.helper.generators["skip"].random()
    return x if chance < 1e-4 else owner.last(owner.drop(owner.first(x)))  # type: ignore[no-any-return]


def skip_by_file(owner: Body, x: Tensor) -> Tensor:
    return x if FILE_GENERATOR.random() < 1e-4 else owner.last(owner.drop(owner.first(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("function", [skip_by_own, skip_by_pythons, skip_by_helper, skip_by_file])
def test_generators_that_are_not_the_global_ones_are_watched_too(tmp_path: Path, function: Any) -> None:
    body, file = Body(function), FILE_GENERATOR.bit_generator.state
    own, pythons = body.own.bit_generator.state, body.pythons.getstate()
    with pytest.raises(ExportError, match="draws from Python's or numpy's own random generator"):
        exported(body, tmp_path)
    assert (body.own.bit_generator.state, body.pythons.getstate()) == (own, pythons)
    assert FILE_GENERATOR.bit_generator.state == file


def quantised(owner: Body, x: Tensor) -> Tensor:
    scale = x.abs().max() / 7
    return owner.last(owner.drop(owner.first(torch.round(x / scale) * scale)))  # type: ignore[no-any-return]


def guarded(owner: Body, x: Tensor) -> Tensor:
    hidden = owner.drop(owner.first(x))
    return owner.last(torch.where((hidden.abs() > 1e4).any(), hidden.clamp(-1, 1), hidden))  # type: ignore[no-any-return]


def guarded_before(owner: Body, x: Tensor) -> Tensor:
    return owner.last(owner.drop(torch.where((x > 1e4).any(), x.clamp(-1, 1), x)))  # type: ignore[no-any-return]


def guarded_in_place(owner: Body, x: Tensor) -> Tensor:
    hidden = owner.drop(owner.first(x)).clone()
    hidden[:, 0] = (x > 1e4).any()
    return owner.last(hidden)  # type: ignore[no-any-return]


def centred(owner: Body, x: Tensor) -> Tensor:
    return owner.last(owner.drop(x - x.mean(0, keepdim=True)))  # type: ignore[no-any-return]


def within_capacity(owner: Body, x: Tensor) -> Tensor:
    """An expert takes the first rows that are sent to it, more than there are in any check of an export."""
    chosen = F.one_hot(owner.last(x).argmax(-1), 3)
    taken = (chosen.cumsum(0) * chosen <= 1000) & (chosen > 0)
    return owner.last(owner.drop(owner.first(x))) * taken  # type: ignore[no-any-return]


def within_rank(owner: Body, x: Tensor) -> Tensor:
    place = x[:, 0].sort(descending=True).indices.argsort()
    return owner.last(owner.drop(owner.first(x))) * (place < 1000).unsqueeze(1)  # type: ignore[no-any-return]


def unlike_the_last(owner: Body, x: Tensor) -> Tensor:
    hidden = owner.first(x)
    return owner.last(owner.drop(torch.where((hidden > 1e4).roll(1, 0), -hidden, hidden)))  # type: ignore[no-any-return]


def unlike_the_one_before(owner: Body, x: Tensor) -> Tensor:
    hidden = owner.first(x)
    before = F.pad(hidden, (0, 0, 1, 0))[:-1]
    return owner.last(owner.drop(hidden + torch.where(before > 1e4, before, 0.0)))  # type: ignore[no-any-return]


def unless_there_are_three(owner: Body, x: Tensor) -> Tensor:
    alike = (x[:, None] - x).abs().sum(-1) < 1e-9
    return owner.last(owner.drop(owner.first(x))) * (alike.sum(1, keepdim=True) < 3)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (unlike_the_last, r"roll\.default"),
        (unlike_the_one_before, r"pad\.default"),
        (unless_there_are_three, r"sub\.Tensor"),
        (within_capacity, r"cumsum\.default"),
        (within_rank, r"sort\.default"),
        (quantised, r"max\.default"),
        (guarded, r"any\.default"),
        (guarded_before, r"any\.default"),
        (guarded_in_place, r"any\.default"),
        (centred, r"mean\.dim"),
    ],
)
def test_a_value_of_all_rows_is_refused_by_its_operation(tmp_path: Path, function: Any, operation: str) -> None:
    with pytest.raises(
        ExportError, match=rf"\(root\) \(aten\.{operation}\): rows of a batch would influence each other"
    ):
        exported(Body(function), tmp_path)


def loss_beside(owner: Body, x: Tensor) -> dict[str, Tensor]:
    logits = owner.last(owner.drop(owner.first(x)))
    zeros = logits.new_zeros(3) + torch.zeros_like(logits[0])
    return {"logits": logits + zeros, "loss": logits.mean()}


def test_a_value_of_all_rows_that_is_left_out_or_holds_nothing_of_them_is_of_no_concern(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="loss"):
        exported(Body(loss_beside), tmp_path)
    assert exported(Body(loss_beside), tmp_path, task="loss=none").max_error < 1e-5


def in_training_otherwise(owner: Body, x: Tensor) -> Tensor:
    return owner.last(x + torch.randn_like(x)) if owner.training else owner.last(x).softmax(-1)  # type: ignore[no-any-return]


def test_a_form_that_only_training_mode_has_is_said(tmp_path: Path) -> None:
    (note,) = exported(Body(in_training_otherwise), tmp_path).notes
    assert note.startswith("(root): in training mode, with noise of its own, it computes something else")


@pytest.mark.parametrize("name", ["N", "beta", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("E", "test"))])
def test_dimensions_are_called_as_the_user_calls_them(tmp_path: Path, name: str) -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3))
    for spec in (f"x:float32[{name},8]", f"x:float32[batch,{name},8]"):
        manifest = exported(module, tmp_path, inputs=[spec], overwrite=True).manifest
        assert manifest.monte_carlo is not None
        shape = manifest.inputs[0].shape
        assert manifest.monte_carlo.sites[0].shape == shape
        assert manifest.outputs[0].shape == (*shape[:-1], 3)


def test_a_dimension_of_the_files_own_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a dimension cannot be called draws"):
        exported(nn.Dropout(0.5), tmp_path, inputs=["x:float32[batch,draws]"])


@pytest.mark.parametrize("draws", [None, 3])
def test_an_output_called_as_an_input_is_refused(tmp_path: Path, draws: int | None) -> None:
    def passed_on(owner: Body, x: Tensor) -> dict[str, Tensor]:
        return {"logits": owner.last(owner.drop(x)), "x": x}

    with pytest.raises(ExportError, match=r"output 'x': has the name of an input.*--task x=none"):
        exported(Body(passed_on), tmp_path, mc_draws=draws)
    assert exported(Body(passed_on), tmp_path, mc_draws=3, task="x=none").max_error < 1e-5


def test_a_recurrent_network_of_one_layer_drops_nothing(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 4, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]  # type: ignore[no-any-return]

    with (
        pytest.warns(UserWarning, match="dropout option adds dropout"),
        pytest.raises(ExportError, match="no dropout found"),
    ):
        exported(Net(), tmp_path, inputs=["x:float32[batch,5,8]"])


def one_of_four(owner: Body, x: Tensor) -> Tensor:
    """One line of four is the row's own, the others are the same for all rows."""
    learned = owner.last.weight[:, None, :].expand(3, x.shape[0], 8).transpose(0, 1)
    lines = torch.cat([x[:, None], learned], 1).flatten(0, 1)
    return owner.last(owner.drop(lines).unflatten(0, (-1, 4)).mean(1))  # type: ignore[no-any-return]


def one_of_four_outside(owner: Body, x: Tensor) -> Tensor:
    """The same with the batch varying faster."""
    learned = owner.last.weight[:, None, :].expand(3, x.shape[0], 8)
    lines = torch.cat([x[None], learned], 0).flatten(0, 1)
    return owner.last(owner.drop(lines).view(4, -1, 8).mean(0))  # type: ignore[no-any-return]


def path_of_frames(owner: Body, x: Tensor) -> Tensor:
    frames = owner.first(x.unflatten(1, (4, 2)).repeat(1, 1, 4).flatten(0, 1))
    if owner.training:
        frames = frames * torch.rand(frames.shape[0], 1).add(0.7).floor() / 0.7
    return frames.unflatten(0, (-1, 4)).mean(1)


@pytest.mark.parametrize("function", [one_of_four, one_of_four_outside, path_of_frames])
def test_where_the_rows_lie_in_a_fold_is_found(tmp_path: Path, function: Any) -> None:
    result = exported(Body(function), tmp_path, formats=["torchscript", "onnx"])
    assert result.max_error < 1e-5
    assert result.manifest.monte_carlo is not None
    assert result.manifest.monte_carlo.sites[0].shape[0] == "4*batch"


@pytest.mark.parametrize("write", [lambda h: h.view(-1).normal_(), lambda h: h.flatten().uniform_()])
def test_noise_in_a_flat_view_is_refused_by_its_module(tmp_path: Path, write: Any) -> None:
    def flat(owner: Body, x: Tensor) -> Tensor:
        hidden = owner.first(x)
        return owner.last(hidden + write(hidden.clone()).view(-1, 8))  # type: ignore[no-any-return]

    with pytest.raises(ExportError, match=r"\(root\): .*folded with another dimension"):
        exported(Body(flat), tmp_path)


@pytest.mark.parametrize("options", [{}, {"keep_draws": True}])
def test_a_batch_of_one_that_loses_its_dimension_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    def squeezed(owner: Body, x: Tensor) -> Tensor:
        return owner.last(owner.drop(owner.first(x))).sum(1, keepdim=True).squeeze()  # type: ignore[no-any-return]

    with pytest.raises(ExportError, match=r"output 'output': has shape \[\] for a batch of 1.*squeeze"):
        exported(Body(squeezed), tmp_path, **options)


class Aged(nn.Module):
    """A head whose limits evaluation alone has, behind a dropout or with one of its own."""

    def __init__(self, own: float, limits: tuple[float, float] = (0, 120)) -> None:
        super().__init__()
        self.last, self.own, self.limits = nn.Linear(8, 1), own, limits

    def forward(self, x: Tensor) -> Tensor:
        age = self.last(F.dropout(x.clamp(*self.limits), self.own, self.training)) + 40
        return age if self.training else age.clamp(*self.limits)


@pytest.mark.parametrize("beside", [nn.Identity(), Standardised()])
def test_what_only_evaluation_does_in_a_module_without_draws_is_in_the_file(tmp_path: Path, beside: nn.Module) -> None:
    module = nn.Sequential(nn.Dropout(0.3), beside, Aged(0.0))
    module[2].last.weight.data.fill_(1.0)  # The checks' own rows stay within the limits.
    exported(module, tmp_path)
    with deploykit.load(tmp_path / "a", runner="torch") as predictor:
        found = predictor.predict(np.full((2, 8), 100.0, np.float32), draws=4)
    assert found["output.mean"].tolist() == [[120.0]] * 2


class Sampled(nn.Module):
    """Several masks in training, none in evaluation: other operations, which agree in all numbers with masks off."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.drops = nn.Linear(8, 3), nn.ModuleList(nn.Dropout(0.3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return torch.stack([self.last(drop(x)) for drop in self.drops]).mean(0)
        return self.last(x)  # type: ignore[no-any-return]


class Spatial(nn.Dropout2d):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return super().forward(x.unsqueeze(-1).unsqueeze(-1)).squeeze(-1).squeeze(-1)


@pytest.mark.parametrize("module", [Sampled(), nn.Sequential(nn.Linear(8, 8), Spatial(0.3))])
def test_other_ways_to_compute_the_same_are_no_difference(tmp_path: Path, module: nn.Module) -> None:
    exported(module, tmp_path)


def test_what_only_evaluation_does_beside_noise_is_told(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            age = self.last(x + 0.1 * torch.randn_like(x) if self.training else x) + 60
            return age if self.training else age.clamp(0, 120)

    assert "computes something else than in evaluation" in " ".join(exported(Noisy(), tmp_path).notes)


def test_what_only_evaluation_does_in_a_module_that_draws_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"1 computes aten.clamp.*120.* in evaluation only"):
        exported(nn.Sequential(nn.Linear(8, 8), Aged(0.3)), tmp_path)
