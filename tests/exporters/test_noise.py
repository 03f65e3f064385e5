"""Randomness made by hand, in both formats, against the eager module with the noise of ``deploykit.noise``."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, distributions, fx, nn

from deploykit import masks, noise
from deploykit.cli.artifact import inspect
from deploykit.errors import ExportError
from exporters.capture.overwritten import renew_overwritten
from exporters.eager.dropouts import answered_dropouts
from exporters.export import export_module
from tests.exporters import models, noisy
from tests.exporters.test_monte_carlo import SPEC, clients, names_of

Arrays = dict[str, np.ndarray[Any, Any]]
IDS = np.array([3, 2**40, 0, 77, -5, 12, 13], dtype=np.int64)


def rows(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).standard_normal((count, 6)).astype(np.float32)


def oracle(module: nn.Module, x: np.ndarray[Any, Any], ids: np.ndarray[Any, Any], seed: int, draws: range) -> Arrays:
    """(draws, batch, ...) of every output of a module whose noise all has the batch as its first dimension."""
    found: list[Arrays] = []
    for draw in draws:
        site = iter(range(100))

        def answer(kind: str, shape: Any, p: float | None, draw: int = draw, site: Any = site) -> Tensor:
            units = int(np.prod(shape[1:]))
            return torch.from_numpy(noise.sample(kind, seed, next(site), ids, [draw], units, p)[0].reshape(shape))

        with torch.no_grad(), answered_dropouts(answer):
            found.append({name: value.numpy() for name, value in module(torch.from_numpy(x)).items()})
    return {name: np.stack([each[name] for each in found]) for name in found[0]}


def training_but_norms(module: nn.Module) -> nn.Module:
    module.train()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d):
            child.eval()
    return module


class Exported:
    """The module of all functions, its artifact, and what the oracle says."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        module = noisy.Noisy(noisy.FUNCTIONS).eval()
        self.result = export_module(module, folder / "a", inputs=[SPEC], mc_draws=5, keep_draws=True)
        self.clients = clients(self.result.path, names_of(self.result))
        self.wanted = oracle(training_but_norms(module), rows(7), IDS, 9, range(2, 6))
        self.got = {name: self.draws(client, slice(None)) for name, client in self.clients.items()}

    @staticmethod
    def draws(client: Callable[..., Arrays], part: slice) -> Arrays:
        return client({"x": rows(7)[part]}, sample_ids=IDS[part].copy(), seed=9, first_draw=2, draws=4)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("noisy"))


@pytest.mark.parametrize("client", ["onnx", "torchscript"])
@pytest.mark.parametrize("function", noisy.FUNCTIONS)
def test_every_draw_equals_the_module_with_numpy_noise(exported: Exported, function: str, client: str) -> None:
    output = f"o{list(noisy.FUNCTIONS).index(function)}"
    wanted = exported.wanted[output]
    assert (wanted.std(0).max(0) > 1e-3).any(), "the oracle itself must be random"
    got = np.swapaxes(exported.got[client][f"{output}.draws"], 0, 1)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("client", ["onnx", "torchscript"])
def test_a_row_is_the_same_alone_and_in_company(exported: Exported, client: str) -> None:
    for part in (slice(0, 1), slice(4, 5), slice(2, 4)):
        apart = exported.draws(exported.clients[client], part)
        for name, together in exported.got[client].items():
            if name.endswith(".draws"):
                np.testing.assert_allclose(apart[name], together[part], rtol=0, atol=1e-5, err_msg=name)


def test_sites_say_their_kind_and_p(exported: Exported) -> None:
    section = exported.result.manifest.monte_carlo
    assert section is not None
    assert section.form_reason is None, "all draws run together"
    sites = {site.module: (site.kind, site.p, site.shape) for site in section.sites}
    by_name = {name: sites[f"inner.{index}"] for index, name in enumerate(noisy.FUNCTIONS)}
    assert by_name["torch.rand_like"] == ("uniform", None, ("batch", 6))
    assert by_name["drop path by bernoulli_"] == ("bernoulli", pytest.approx(0.2), ("batch", 1))
    assert by_name["F.rrelu"] == ("rrelu", None, ("batch", 6))
    assert {kind for kind, _, _ in by_name.values()} == set(noise.KINDS)


def test_inspect_shows_sites_that_have_no_p(exported: Exported) -> None:
    shown = CliRunner().invoke(inspect, [str(exported.result.path)])
    assert shown.exit_code == 0
    assert re.search(r"inner\.1 +uniform +- +\[batch, 6\]", shown.output)


class Bare(nn.Module):
    """Noise as it is."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {
            "uniform": torch.rand_like(x),
            "half": torch.rand(x.shape, dtype=torch.float16).float(),
            "mask": torch.bernoulli(x, 0.7),
            "chance": torch.bernoulli(torch.full_like(x, 0.7)),
            "never": torch.bernoulli(x, 0.0),
            "always": torch.bernoulli(x, 1.0),
            "normal": torch.randn_like(x),
            "double": torch.randn_like(x.double()),
        }


def test_noise_is_bit_for_bit_the_numpy_reference_in_both_formats(tmp_path: Path) -> None:
    result = export_module(Bare(), tmp_path / "a", inputs=["x:float32[batch,257]"], mc_draws=3, keep_draws=True)
    ids, x = np.array([0, 1, 2**62, -1, 999_999_999_999], dtype=np.int64), np.ones((5, 257), np.float32)
    draws, seed = np.arange(1000, 1004), -(2**62)
    for client in clients(result.path, names_of(result)).values():
        found = client({"x": x}, sample_ids=ids, seed=seed, first_draw=1000, draws=4)
        got = {name: np.swapaxes(found[f"{name}.draws"], 0, 1) for name in Bare()(torch.ones(1, 257))}
        np.testing.assert_array_equal(got["uniform"], noise.sample("uniform", seed, 0, ids, draws, 257, None))
        half = noise.sample("uniform", seed, 1, ids, draws, 257, None)
        np.testing.assert_array_equal(got["half"], np.minimum(half, 1 - 2**-11).astype(np.float16))
        np.testing.assert_array_equal(got["mask"], masks.keep_mask(seed, 2, ids, draws, 257, 1 - 0.7))
        chance = noise.sample("bernoulli", seed, 3, ids, draws, 257, None) >= 1 - np.float32(0.7)
        np.testing.assert_array_equal(got["chance"], chance)
        np.testing.assert_array_equal(got["never"], 0)
        np.testing.assert_array_equal(got["always"], 1)
        normal = noise.sample("normal", seed, 6, ids, draws, 257, None)
        np.testing.assert_allclose(got["normal"], normal, rtol=0, atol=3e-6)
        assert got["double"].dtype == np.float64


@pytest.mark.parametrize("kind", [noisy.HandMadeHeads, noisy.HandMadeSteps], ids=lambda kind: kind.__name__)
def test_noise_follows_the_rows_of_a_folded_batch(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = export_module(kind(), tmp_path / "a", inputs=[SPEC], mc_draws=6, keep_draws=True)
    for client in clients(result.path, names_of(result)).values():
        together = client({"x": rows(7)}, sample_ids=IDS)["output.draws"]
        assert together.std(1).min() > 0
        for row in (0, 3, 6):
            alone = client({"x": rows(7)[row : row + 1]}, sample_ids=IDS[row : row + 1])["output.draws"]
            np.testing.assert_allclose(alone[0], together[row], rtol=0, atol=1e-5)


def test_noise_in_a_folded_batch_that_nothing_tells_the_order_of_is_refused(tmp_path: Path) -> None:
    def folded(owner: nn.Module, x: Tensor) -> Tensor:
        return x + torch.rand(2 * x.shape[0], 8).view(x.shape[0], 2, 8).mean(1)

    with pytest.raises(ExportError, match=r"inner: rand has the shape .* folded"):
        export_module(models.Wrapped(folded), tmp_path / "a", inputs=[SPEC], mc_draws=3)


def test_noise_of_more_rows_than_the_batch_is_refused_by_its_operation(tmp_path: Path) -> None:
    module = models.Wrapped(lambda _owner, x: x * torch.rand(x.shape[0] + 1, 1)[1:])
    with pytest.raises(ExportError, match=r"^inner: rand: dimension 0 is batch \+ 1, which is not a multiple"):
        export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=3)


@pytest.mark.parametrize("draws", [None, 4])
def test_noise_that_is_on_in_evaluation_needs_no_draws(draws: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = export_module(noisy.Autoencoder().eval(), tmp_path / "a", inputs=[SPEC], mc_draws=draws)
    section = result.manifest.monte_carlo
    assert section is not None
    assert [site.kind for site in section.sites] == (["normal"] if draws is None else ["normal", "dropout"])
    assert names_of(result) == (["output"] if draws is None else ["output.mean", "output.std"])
    assert result.max_error < 1e-5


def test_noise_that_is_kept_in_a_buffer_is_no_state(tmp_path: Path) -> None:
    """Layers of Bayesian networks fill it anew in every call, before they read it."""
    module = noisy.KeptNoise().eval()
    result = export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=4)
    assert result.manifest.monte_carlo is not None
    assert [site.kind for site in result.manifest.monte_carlo.sites] == ["normal", "uniform", "normal"]
    assert result.manifest.monte_carlo.form == "batched"
    assert not any(buffer.any() for buffer in module.buffers()), "the module is left as it was"


FILLED: dict[str, tuple[Callable[[nn.Module], Any], list[str]]] = {
    "exponential": (lambda m: m.get_buffer("kept").data.exponential_(), ["exponential"]),
    "with odds": (lambda m: m.get_buffer("kept").detach().bernoulli_(m.get_buffer("odds")), ["bernoulli"]),
    "with its own odds": (
        lambda m: m.get_buffer("kept").uniform_().bernoulli_(m.get_buffer("kept")),
        ["uniform", "bernoulli"],
    ),
    "a copy, as in NoisyNet": (
        lambda m: m.get_buffer("kept").copy_(torch.randn(6).abs().sqrt()).mul_(0.5),
        ["normal"],
    ),
}


@pytest.mark.parametrize("name", FILLED)
def test_a_buffer_holds_what_filled_it_last(name: str, tmp_path: Path) -> None:
    """The export holds the file against the module."""
    fill, kinds = FILLED[name]
    module = noisy.Inner(lambda m, x: (fill(m), x * m.get_buffer("kept"))[1])
    module.register_buffer("kept", torch.ones(6))
    module.register_buffer("odds", torch.linspace(0.2, 0.8, 6))
    result = export_module(module.eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3, formats=["torchscript"])
    assert result.manifest.monte_carlo is not None
    assert [site.kind for site in result.manifest.monte_carlo.sites] == kinds


def test_a_filling_reads_the_one_before_it() -> None:
    graph, aten = fx.Graph(), torch.ops.aten
    buffer = graph.get_attr("kept")
    first = graph.call_function(aten.uniform_.default, (buffer,))
    second = graph.call_function(aten.bernoulli_.Tensor, (buffer, buffer))
    graph.output(buffer)
    renew_overwritten(graph)
    graph.lint()
    memory, odds = second.args
    assert isinstance(memory, fx.Node)
    assert memory.target is aten.empty_like.default
    assert odds is first
    assert graph.output_node().args == (second,)


READ_FIRST: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a read": lambda m, x: m.get_buffer("kept").sum() * m.get_buffer("kept").normal_() + x,
    "a view that is read": lambda m, x: m.get_buffer("kept")[:1] * m.get_buffer("kept").data.normal_() + x,
    "a part": lambda m, x: m.get_buffer("kept")[:3].normal_().sum() + m.get_buffer("kept") + x,
    "its own values": lambda m, x: m.get_buffer("kept").bernoulli_(m.get_buffer("kept")) + x,
    "a copy of itself": lambda m, x: m.get_buffer("kept").copy_(m.get_buffer("kept") + torch.randn(6)) + x,
    "an activation": lambda m, x: torch.rrelu_(m.get_buffer("kept"), training=True) + x,
}


@pytest.mark.parametrize("name", READ_FIRST)
def test_a_buffer_that_is_read_before_noise_fills_it_is_state(name: str, tmp_path: Path) -> None:
    module = noisy.Inner(READ_FIRST[name])
    module.register_buffer("kept", torch.ones(6))
    with pytest.raises(ExportError, match=r"^kept: written in forward"):
        export_module(module.eval(), tmp_path / "a", inputs=[SPEC], mc_draws=3)


def test_hand_made_noise_leaves_everything_else_in_evaluation(tmp_path: Path) -> None:
    """A module that mixes rows in training mode is refused beside its noise, and untouched elsewhere."""

    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0) if self.training else x

    masked = models.Wrapped(noisy.switched(lambda m, x: x * (torch.rand_like(x) > 0.5) / 0.5))
    result = export_module(
        nn.Sequential(Centred(), masked), tmp_path / "a", inputs=["input:float32[batch,6]"], mc_draws=3
    )
    assert result.max_error < 1e-5

    centred = models.Wrapped(noisy.switched(lambda m, x: (x - x.mean(0)) * (torch.rand_like(x) > 0.5)))
    with pytest.raises(ExportError, match=r"training mode changes more than the dropouts \(inner\)"):
        export_module(centred, tmp_path / "b", inputs=[SPEC], mc_draws=3)


def test_half_precision(tmp_path: Path) -> None:
    def several(owner: nn.Module, x: Tensor) -> Tensor:
        return x * torch.rand_like(x) + torch.randn_like(x) + torch.empty_like(x).exponential_()

    torch.manual_seed(0)
    module = models.Wrapped(several).half()
    result = export_module(module, tmp_path / "a", inputs=["x:float16[batch,6]"], mc_draws=3)
    assert result.max_error < 2e-3


@pytest.mark.parametrize(
    "draw",
    [
        lambda logits: distributions.Bernoulli(logits=logits).sample(),
        lambda logits: distributions.RelaxedBernoulli(torch.tensor(0.5), logits=logits).rsample(),
    ],
    ids=["Bernoulli", "RelaxedBernoulli"],
)
def test_distributions_by_logits(tmp_path: Path, draw: Any) -> None:
    module = models.Wrapped(lambda _owner, x: draw(x))
    assert export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=3).max_error < 1e-5


def test_a_randomised_relu_that_is_off_is_exported(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.RReLU(0.1, 0.4))
    result = export_module(module, tmp_path / "a", inputs=["input:float32[batch,6]"])
    assert result.manifest.monte_carlo is None
    assert result.max_error < 1e-5


def other_randomness() -> dict[str, Any]:
    return {
        "randint": lambda m, x: x * torch.randint(0, 2, x.shape),
        "randperm": lambda m, x: x[:, torch.randperm(8)],
        "multinomial": lambda m, x: x * torch.multinomial(x.softmax(1), 8),
        "poisson": lambda m, x: torch.poisson(x.abs()),
        "geometric_": lambda m, x: x + torch.empty_like(x).geometric_(0.5),
        "cauchy_": lambda m, x: x + torch.empty_like(x).cauchy_(),
        "log_normal_": lambda m, x: x + torch.empty_like(x).log_normal_(),
        "random_": lambda m, x: x + torch.empty_like(x).random_(3),
        "randn of complex numbers": lambda m, x: x + torch.randn(x.shape, dtype=torch.complex64).real,
        "uniform_(generator=)": lambda m, x: x + torch.empty_like(x).uniform_(generator=torch.Generator()),
    }


@pytest.mark.parametrize("operation", other_randomness())
def test_other_randomness_is_refused_by_name(operation: str, tmp_path: Path) -> None:
    module = models.Wrapped(other_randomness()[operation])
    by_name = rf"inner: {re.escape(operation)}\. Supported are"
    if "generator=" in operation:  # Which torch 2.11 cannot capture at all.
        by_name += r"|inner .*: draws with a generator of its own"
    with pytest.raises(ExportError, match=by_name):
        export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=4)
    assert list(tmp_path.iterdir()) == []


def test_signs_that_are_drawn_as_integers_are_refused_by_the_operation(tmp_path: Path) -> None:
    module = models.Wrapped(lambda _owner, x: x * (torch.empty_like(x).random_(0, 2) * 2 - 1))
    with pytest.raises(ExportError, match=r"^random_\(from, to\): cannot be exported; draw with"):
        export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=4)


def test_a_dropout_in_a_branch_of_torch_is_refused_by_name(tmp_path: Path) -> None:
    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Any:
            return torch.cond(x.sum() > 0, self.drop, torch.clone, (x,))  # type: ignore[no-untyped-call]

    with pytest.raises(ExportError, match=r"faithfully yet: drop: dropout in a block of torch\.cond\. Supported are"):
        export_module(Chooses(), tmp_path / "a", inputs=[SPEC], mc_draws=4)


def test_a_layer_that_one_number_for_all_rows_switches_is_exported(tmp_path: Path) -> None:
    """Stochastic depth of whole batches; the number has no dimension."""

    class Switched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.cos() * (torch.rand(()) >= 0.3) / 0.7 + torch.randn([])

    result = export_module(Switched(), tmp_path / "a", inputs=[SPEC], mc_draws=4, keep_draws=True)
    assert result.max_error < 1e-5
    wanted = noise.sample("uniform", 0, 0, [0], np.arange(40), 1, None)[:, 0, 0] >= 0.3
    for client in clients(result.path, names_of(result)).values():
        got = client({"x": np.zeros((3, 6), np.float32)}, draws=40)["output.draws"]
        shift = noise.sample("normal", 0, 1, [0], np.arange(40), 1, None)[None, :, :, 0]
        np.testing.assert_allclose(got, np.broadcast_to(wanted[None, :, None] / 0.7 + shift, got.shape), atol=1e-5)


def test_noise_that_belongs_to_no_row_is_the_same_for_all_rows_of_a_draw(tmp_path: Path) -> None:
    class OneVector(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rand(6)

    result = export_module(OneVector(), tmp_path / "a", inputs=[SPEC], mc_draws=4, keep_draws=True)
    wanted = noise.sample("uniform", 0, 0, [0], np.arange(4), 6, None)[:, 0]
    for client in clients(result.path, names_of(result)).values():
        got = client({"x": np.ones((3, 6), np.float32)}, sample_ids=np.array([9, 5, 7]))["output.draws"]
        for row in got:
            np.testing.assert_array_equal(row, wanted)
