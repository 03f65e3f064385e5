"""Modules that an export once got wrong or refused without reason: writes in place, state, sizes, compiled parts."""

import functools
import re
from collections import OrderedDict, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, distributions, nn
from torch import dropout as bound_dropout
from torch._subclasses import FakeTensor
from torch.nn.functional import scaled_dot_product_attention as bound_attention

from deploykit.errors import ExportError
from exporters.eager.dropouts import without_dropout
from exporters.export import export_module

SPEC = "x:float32[batch,8]"


class Body(nn.Module):
    """Two layers and a dropout around a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.drop = nn.Dropout(0.3)
        self.count: Tensor
        self.register_buffer("count", torch.zeros(()))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def write_into_zeros(owner: Body, x: Tensor) -> Any:
    """The memory exists before the dropout is drawn."""
    out = x.new_zeros(x.shape[0], 2, 8)
    out[:, 0] = x
    out[:, 1] = owner.drop(owner.first(x))
    return out


def write_into_input(owner: Body, x: Tensor) -> Any:
    x[:, :4] = owner.drop(owner.first(x))[:, :4]
    return owner.last(x), x[:, [0, 3]]


def ignore_result(owner: Body, x: Tensor) -> Any:
    hidden = owner.first(x)
    F.dropout(hidden.view(-1, 2, 4), 0.5, owner.training, inplace=True)
    return owner.last(hidden)


def index_by_list(owner: Body, x: Tensor) -> Any:
    hidden = owner.drop(owner.first(x))
    hidden[:, [0, 2]] = 1.5
    return hidden[:, [0, 2, 5]]


def unused_average(owner: Body, x: Tensor) -> Any:
    """A buffer that is written and read by no output."""
    hidden = owner.drop(owner.first(x))
    owner.count.mul_(0.9).add_(hidden.mean() * 0.1)
    return hidden


def count_calls(owner: Body, x: Tensor) -> Any:
    owner.count += 1
    return owner.drop(owner.first(x)) * owner.count


def fill_by_chance(owner: Body, x: Tensor) -> Any:
    """Read for its shape before it is written to, and the same in every draw up to then."""
    hidden = owner.first(x)
    return owner.last(hidden.masked_fill_(torch.rand_like(hidden) > 0.7, 0.0))


def copy_noisy(owner: Body, x: Tensor) -> Any:
    hidden = owner.first(x)
    return owner.last(hidden.copy_(hidden * torch.rand_like(hidden)))


def copy_chosen(owner: Body, x: Tensor) -> Any:
    hidden = owner.first(x)
    return owner.last(hidden.copy_(torch.where(torch.rand(hidden.shape[0], 1) < 0.5, hidden, -hidden)))


def raise_in_place(owner: Body, x: Tensor) -> Any:
    """As graph networks do it with the degrees of nodes; without the write it has another overload's name."""
    return owner.last(owner.drop(owner.first(x).abs_().add_(1).pow_(-0.5)).pow_(2.0))


WRITES = [
    write_into_zeros, write_into_input, ignore_result, index_by_list, unused_average, fill_by_chance, copy_noisy,
    copy_chosen, raise_in_place,
]  # fmt: skip


@pytest.mark.parametrize("function", WRITES)
def test_writes_in_place_around_a_dropout_are_exported(tmp_path: Path, function: Any) -> None:
    result = export_module(Body(function).eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3)
    assert result.max_error < 1e-5
    assert result.manifest.monte_carlo is not None
    assert result.manifest.monte_carlo.form == "batched", "else a defect of that form would only make it slower"


@pytest.mark.parametrize("function", [Tensor.type_as, Tensor.to], ids=["type_as", "to"])
def test_a_constant_takes_the_type_of_rows_and_nothing_else(tmp_path: Path, function: Any) -> None:
    """As VideoMAE does it with its positions, and as Lightning advises."""

    def shifted(owner: Body, x: Tensor) -> Any:
        hidden = owner.drop(owner.first(x))
        return owner.last(hidden + function(torch.linspace(-1, 1, 8, dtype=torch.float64), hidden))

    result = export_module(Body(shifted).eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3)
    assert result.max_error < 1e-5
    assert result.manifest.monte_carlo is not None
    assert result.manifest.monte_carlo.form == "batched"


@pytest.mark.parametrize("draws", [None, 3])
def test_state_that_outputs_depend_on_is_refused_by_its_name(tmp_path: Path, draws: int | None) -> None:
    with pytest.raises(ExportError, match=r"^count: written in forward"):
        export_module(Body(count_calls).eval(), tmp_path / "a", inputs=[SPEC], mc_draws=draws)


class CountsInAList(nn.Module):
    """Writes to two buffers by one operation, which takes a list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Tensor
        self.seen: Tensor
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        torch._foreach_add_([self.count, self.seen], 1.0)
        return x + self.seen


def test_buffers_that_are_written_in_a_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^count, seen: written in forward"):
        export_module(CountsInAList(), tmp_path / "m", inputs=["x:float32[batch,3]"], formats=["torchscript"])


def test_a_size_squared_is_written_to_torchscript(tmp_path: Path) -> None:
    class Scores(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x @ x.transpose(1, 2)).reshape(x.shape[0], x.shape[1] ** 2)

    export_module(Scores().eval(), tmp_path / "a", inputs=["x:float32[batch,seq,8]"], formats=["torchscript"])


def test_spectral_norm_keeps_its_evaluation_mode(tmp_path: Path) -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Dropout(0.3)).eval()
    assert export_module(model, tmp_path / "a", inputs=[SPEC], mc_draws=3).max_error < 1e-5


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_compiled_module_is_exported_as_it_was_written(tmp_path: Path) -> None:
    model = torch.compile(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3)).eval())
    assert isinstance(model, nn.Module)
    assert export_module(model, tmp_path / "a", inputs=[SPEC], mc_draws=3).max_error < 1e-5


@functools.lru_cache
def causal(size: int) -> Tensor:
    return torch.full((size, size), -torch.inf).triu(1)


class Keeper(Body):
    """Leaves something of every call wherever Python allows it, and looks up what it kept."""

    shared: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        calls: list[Tensor] = []
        super().__init__(lambda owner, x: owner.keep(x, calls))
        self.calls, self.maps, self.recent, self.names = calls, [[0]], deque([1, 2], maxlen=2), {"a"}
        self.rope: dict[str, Any] = {"tables": {}}
        self.helper = SimpleNamespace(last=None)
        self.generator = np.random.default_rng(0)

    def keep(self, x: Tensor, calls: list[Tensor]) -> Tensor:
        tables = self.rope["tables"]
        if 8 not in tables:
            tables[8] = torch.arange(8.0).cos()
        hidden = self.drop(self.first(x)) * tables[8]
        self.shared.setdefault("mask", torch.ones(8))
        self.maps[0].append(hidden)
        self.recent.append(hidden)
        self.names.add(f"b{len(self.maps[0])}")
        self.helper.last = hidden
        calls.append(hidden)
        return hidden @ causal(8).exp() * self.shared["mask"]


def test_nothing_is_left_in_lists_nested_dicts_helpers_closures_and_caches(tmp_path: Path) -> None:
    model = Keeper().eval()
    maps = model.maps[0]
    export_module(model, tmp_path / "a", inputs=[SPEC], mc_draws=3, formats=["torchscript"])
    assert model.maps[0] is maps
    assert (model.maps, list(model.recent), model.names, model.calls) == ([[0]], [1, 2], {"a"}, [])
    assert (model.rope, model.helper.last) == ({"tables": {}}, None)
    assert not isinstance(causal(8), FakeTensor)
    assert not isinstance(Keeper.shared.get("mask"), FakeTensor)
    assert not isinstance(model(torch.ones(2, 8)), FakeTensor)


def test_generators_of_a_module_go_back_to_where_they_were(tmp_path: Path) -> None:
    model = Keeper().eval()
    model.keep = lambda x, _calls: model.drop(x) * (model.generator.random() < 2)  # type: ignore[method-assign]
    before = model.generator.bit_generator.state
    try:
        export_module(model, tmp_path / "a", inputs=[SPEC], mc_draws=3, formats=["torchscript"])
    except ExportError:
        """Whether that is refused is another question."""
    assert model.generator.bit_generator.state == before


class WeightDrop(nn.Module):
    """The recurrent weights of an LSTM dropped as in AWD-LSTM: set as an attribute in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(8, 8, batch_first=True)
        self.raw = nn.Parameter(self.cells.weight_hh_l0.data.clone())
        del self.cells._parameters["weight_hh_l0"]
        self.cells.weight_hh_l0 = self.raw.data.clone()

    def forward(self, x: Tensor) -> Tensor:
        self.cells.weight_hh_l0 = F.dropout(self.raw, 0.4, self.training)
        found: Tensor = self.cells(x)[0][:, -1]
        return found


def test_weights_of_an_lstm_that_are_set_in_every_call_are_exported(tmp_path: Path) -> None:
    model = WeightDrop().eval()
    flat = list(model.cells._flat_weights)
    result = export_module(model, tmp_path / "a", inputs=["x:float32[batch,4,8]"], mc_draws=3, formats=["torchscript"])
    assert result.max_error < 1e-5
    assert all(one is other for one, other in zip(model.cells._flat_weights, flat, strict=True))


def bias_dropout_add(x: Tensor, bias: Tensor, rest: Tensor, p: float, training: bool) -> Tensor:
    return rest + torch.nn.functional.dropout(x + bias, p=p, training=training)


def attend(owner: Body, x: Tensor) -> Tensor:
    tokens = owner.first(x).view(-1, 4, 2)
    return bound_attention(tokens, tokens, tokens, dropout_p=0.3 if owner.training else 0.0)


def scripted(owner: Body, x: Tensor) -> Tensor:
    script: Any = torch.jit.script(bias_dropout_add)
    found: Tensor = script(owner.first(x), owner.first.bias, x, 0.2, owner.training)
    return found


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    "function",
    [
        attend,
        lambda owner, x: bound_dropout(owner.first(x), 0.3, owner.training),
        scripted,
    ],
    ids=["attention", "dropout", "script"],
)
def test_dropouts_by_names_bound_before_the_export_are_met(tmp_path: Path, function: Any) -> None:
    result = export_module(Body(function).eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3)
    assert result.max_error < 1e-5
    assert result.manifest.monte_carlo is not None
    assert len(result.manifest.monte_carlo.sites) == 1


def test_a_block_with_gradients_is_none_in_a_file(tmp_path: Path) -> None:
    """As where a part of a network may be frozen; distributions open one for what they compute late."""

    def frozen(owner: Body, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(owner.first.weight.requires_grad):
            hidden = owner.drop(owner.first(x))
        with torch.enable_grad(), torch.no_grad():
            gates = distributions.Bernoulli(logits=owner.first(x)).sample()
        return owner.last(hidden * gates)

    torch.manual_seed(0)
    result = export_module(Body(frozen).eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3)
    assert result.max_error < 1e-5
    assert result.manifest.monte_carlo is not None
    assert [site.kind for site in result.manifest.monte_carlo.sites] == ["dropout", "bernoulli"]


def test_dropout_is_torchs_own_again_after_an_answer() -> None:
    x = torch.ones(4000, requires_grad=True)
    assert torch.equal(without_dropout(lambda: bound_dropout(x, 0.5, True)), x)
    found = bound_dropout(x, 0.5, True)
    found.sum().backward()
    assert 0.4 < float((found == 0).float().mean()) < 0.6
    assert x.grad is not None
    assert torch.equal(x.grad, found.detach())


class Heads(nn.Module):
    """A dropout in the branch of an output that is left out, noise that nobody uses, and one dropout after them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.loss = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 1)
        self.extra, self.cells, self.drop = nn.Dropout(0.1), nn.GRU(8, 8, 3, dropout=0.2), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x)
        torch.randn_like(hidden)
        loss = self.loss(self.cells(self.extra(hidden).unsqueeze(0))[0]).mean()
        return {"loss": loss, "scores": self.head(self.drop(hidden))}


def test_draws_that_no_output_needs_are_left_out(tmp_path: Path) -> None:
    result = export_module(Heads().eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3, task=["loss=none"])
    assert result.max_error < 1e-5
    assert result.manifest.monte_carlo is not None
    assert [site.module for site in result.manifest.monte_carlo.sites] == ["drop"]


class GaussianNoise(nn.Module):
    """As it is copied from place to place: the noise is written to a copy of the buffer, made by the change of type."""

    def __init__(self) -> None:
        super().__init__()
        self.noise: Tensor
        self.register_buffer("noise", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.noise.expand(*x.size()).float().normal_() * 0.1 * x.detach() if self.training else x


def test_memory_that_a_change_of_type_makes_is_no_state(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), GaussianNoise()).eval()
    result = export_module(model, tmp_path / "a", inputs=[SPEC], mc_draws=3, formats=["torchscript"])
    assert result.manifest.monte_carlo is not None
    assert [(site.module, site.kind) for site in result.manifest.monte_carlo.sites] == [("1", "normal")]


class TwoNames(nn.Module):
    """One dropout under two names, and another structure in training mode, so that only its owner may be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.last(self.drop(x))
        return (y, y.sum(-1)) if self.training else y


@pytest.mark.parametrize("patterns", [[], ["first"], ["drop"]])
def test_a_module_is_found_under_each_of_its_names(tmp_path: Path, patterns: list[str]) -> None:
    options: dict[str, Any] = {"mc_draws": 3, "mc_modules": patterns, "formats": ["torchscript"]}
    result = export_module(TwoNames().eval(), tmp_path / "a", inputs=[SPEC], **options)
    assert result.manifest.monte_carlo is not None
    assert [site.kind for site in result.manifest.monte_carlo.sites] == ["dropout"]
    assert [output.name for output in result.manifest.outputs] == ["output.mean", "output.std"]


def test_distributions_that_check_their_parameters_are_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some packages switch the checks off for the whole process.
    monkeypatch.setattr(distributions.Distribution, "_validate_args", True)
    torch.manual_seed(0)

    def sampled(owner: Body, x: Tensor) -> Tensor:
        hidden = owner.first(x)
        return distributions.Normal(hidden, F.softplus(hidden)).rsample()

    assert export_module(Body(sampled).eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3).max_error < 1e-5
    with pytest.raises(ValueError, match="constraint"):
        distributions.Normal(torch.zeros(2), -torch.ones(2))


def test_a_refusal_names_the_module_whatever_its_methods_call_it(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(this, x: Tensor) -> Tensor:  # noqa: N805 - the point of the test
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match=r"^1 \(test_adversary.py:\d+: return x if x.sum"):
        export_module(nn.Sequential(nn.Linear(8, 8), Odd()), tmp_path / "a", inputs=[SPEC])


class Makers(OrderedDict[str, type[nn.Module]]):
    """Gives something else than it holds, as the table of activations of transformers does."""

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name)()


MAKERS = Makers(relu=nn.ReLU)


def test_a_table_that_makes_what_it_gives_stays_as_it_was(tmp_path: Path) -> None:
    export_module(
        nn.Sequential(Body(copy_noisy)).eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3, formats=["torchscript"]
    )
    assert list(MAKERS.values()) == [nn.ReLU]
    assert isinstance(MAKERS["relu"], nn.ReLU)


@pytest.mark.parametrize("patterns", [["1", "drop*"], ["nothing", "3"]])
def test_each_pattern_must_fit_a_module_that_draws(tmp_path: Path, patterns: list[str]) -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 3), nn.Dropout(0.2))
    wrong = next(pattern for pattern in patterns if not pattern.isdigit())
    message = rf"in modules like {re.escape(wrong)}; --mc-modules can choose among 1, 3; correct it"
    with pytest.raises(ExportError, match=message):
        export_module(module, tmp_path / "a", inputs=["x:float32[batch,6]"], mc_draws=3, mc_modules=patterns)
