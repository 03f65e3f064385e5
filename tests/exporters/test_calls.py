"""The ways in which a method takes its inputs, and the modules that are no subject of an export at all."""

import inspect
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deploykit.errors import ExportError, UsageError
from exporters.eager.entry import Entry, arrangement_for
from exporters.export import check_request, export_module
from runners.predict import load

SPECS = ("x:float32[batch,6]", "y:float32[batch,6]")


class Pair(nn.Module):
    """Weighs two inputs differently, so that none can stand in for the other."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.4), nn.Linear(6, 3)

    def weigh(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.drop(x)) + 2 * y[:, :3]


class Mapped(Pair):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.weigh(batch["x"], batch["y"])


class Listed(Pair):
    def forward(self, batch: list[Tensor]) -> Tensor:
        return self.weigh(*batch)


class Keywords(Pair):
    def forward(self, **batch: Tensor) -> Tensor:
        return self.weigh(batch["x"], batch["y"])


class Positions(Pair):
    def forward(self, *x: Tensor) -> Tensor:
        return self.weigh(*x)


class Slashed(Pair):
    def forward(self, x: Tensor, y: Tensor, /) -> Tensor:
        return self.weigh(x, y)


class Anything(Pair):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.weigh(*args, **kwargs)


class More(Pair):
    def forward(self, first: Tensor, second: Tensor, **rest: Any) -> Tensor:
        return self.weigh(first, second)


Batch = Literal["auto", "list", "dict"]


@pytest.mark.parametrize(
    ("kind", "batch"),
    [
        (Mapped, "dict"),
        (Listed, "list"),
        (Keywords, "auto"),
        (Positions, "auto"),
        (Slashed, "auto"),
        (Anything, "auto"),
        (More, "auto"),
    ],
)
def test_inputs_reach_a_method_however_it_takes_them(tmp_path: Path, kind: type[Pair], batch: Batch) -> None:
    torch.manual_seed(0)
    module = kind()
    result = export_module(module, tmp_path / "a", inputs=SPECS, batch=batch, formats=["torchscript"])
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit.load"):
        exported = torch.jit.load(result.path / "model.torchscript.pt")
    x, y = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 6)).astype(np.float32))
    torch.testing.assert_close(exported(x, y)["output"], module.eval().weigh(x, y))


@pytest.mark.parametrize(
    ("kind", "names", "noted"),
    [
        (More, ["x", "y"], "x as first, y as second"),
        (Slashed, ["y", "x"], "y as x, x as y"),
        (Slashed, ["x", "y"], None),
        (More, ["second", "first"], None),
        (Positions, ["a", "b"], None),
    ],
)
def test_inputs_that_go_by_their_order_are_told(kind: type[Pair], names: list[str], noted: str | None) -> None:
    """Two inputs of one dtype and shape are exchanged without an error."""
    module = kind()
    notes = Entry(module, "forward", names, arrangement_for(module, "forward", names)).notes()
    said = f"forward gets the inputs in their order, whatever their names: {noted}"
    assert notes == (() if noted is None else (said,))


@pytest.mark.parametrize("kind", [Mapped, Listed])
def test_inputs_that_do_not_fit_say_what_the_method_takes(kind: type[Pair]) -> None:
    message = r"inputs \['x', 'y'\]: forward of \w+ takes \(batch: .*--batch list or --batch dict"
    with pytest.raises(UsageError, match=message):
        arrangement_for(kind(), "forward", ["x", "y"])


@pytest.mark.parametrize("names", [["x"], ["x", "z"], ["x", "y", "z"], ["y"]])
def test_a_missing_and_an_unknown_input_are_refused(names: list[str]) -> None:
    class Two(Pair):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.weigh(x, y)

    with pytest.raises(UsageError, match=r"takes \(x: .*(missing a required|unexpected keyword).*'[xyz]'"):
        arrangement_for(Two(), "forward", names)


@pytest.mark.parametrize("make", [torch.jit.script, lambda module: torch.jit.trace(module, torch.zeros(2, 6))])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_module_is_refused(tmp_path: Path, make: Any) -> None:
    with pytest.raises(ExportError, match=r"made by torch.jit.script or torch.jit.trace, .*; export the nn.Module"):
        export_module(make(nn.Linear(6, 3)), tmp_path / "a", inputs=[SPECS[0]])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_quantised_module_is_refused_by_the_name_of_the_layer(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Dropout(0.3), nn.Linear(6, 3))
    quantised = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ExportError, match=r"^1: is a quantised Linear, .*from before torch.ao's quantisation"):
        export_module(quantised, tmp_path / "a", inputs=[SPECS[0]])


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("p", torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)  # type: ignore[arg-type]


def dropout_layers(layers: nn.ModuleList, p: float) -> list[nn.Module]:
    """As vit-pytorch's layer drop."""
    return [layer for layer, left_out in zip(layers, torch.rand(len(layers)) < p, strict=True) if not left_out]


class Thinned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6)])

    def forward(self, x: Tensor) -> Tensor:
        return nn.Sequential(*dropout_layers(self.layers, 0.3 if self.training else 0.0))(x)


TRUNCATED = inspect.getsource(nn.init._no_grad_trunc_normal_)


class Bounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + nn.init.trunc_normal_(torch.empty_like(x))


class Differentiated(nn.Module):
    """As a force is the derivative of an energy."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(F.dropout(x, 0.3, self.training).square().sum(), x)[0]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Differentiated(), r"as the gradients of torch.autograd.grad"),
        (Learned(), r"keep the probability of a dropout as a number of Python's"),
        (Thinned(), r"as layer drop does, set that probability to 0"),
        pytest.param(
            Bounded(),
            r"draw with torch.randn_like and clamp it",
            marks=pytest.mark.skipif("erfinv" in TRUNCATED, reason="before torch 2.12 it looked at no values"),
        ),
    ],
)
def test_a_way_out_is_named_for_what_looks_at_values(tmp_path: Path, module: nn.Module, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_module(module, tmp_path / "a", inputs=[SPECS[0]], mc_draws=3)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"mask_mode": "both"}, r"--mask-mode both: expected independent or shared"),
        ({"batch": "rows"}, r"--batch rows: expected auto or list or dict"),
        ({"seed": 2**63}, r"--seed 9223372036854775808: must be an integer of 64 bits"),
        ({"seed": 0.5}, r"--seed 0.5: must be an integer"),
        ({"tolerance": float("nan")}, r"--tolerance nan: must be a finite number"),
        ({"tolerance": float("inf")}, r"--tolerance inf: must be a finite number"),
        ({"tolerance": -1e-3}, r"--tolerance -0.001: must be a finite number, 0 or above"),
        ({"mc_draws": 2.5}, r"--mc-draws 2.5: must be an integer"),
    ],
)
def test_values_that_no_option_takes_are_refused(tmp_path: Path, option: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_request(tmp_path / "a", option)
    with pytest.raises(UsageError, match=message):
        export_module(nn.Linear(6, 3), tmp_path / "a", inputs=[SPECS[0]], **option)
    assert list(tmp_path.iterdir()) == []


def test_a_single_text_is_not_taken_for_its_letters(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.3))
    result = export_module(
        module, tmp_path / "a", inputs=SPECS[0], formats="torchscript", mc_draws=3, mc_modules="1", seed=-(2**63)
    )
    assert list(result.manifest.formats) == ["torchscript"]
    with load(result.path) as model:
        assert model.predict(np.ones((2, 6), np.float32))["output.std"].max() > 0


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return nn.Linear(6, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(3)), r"0.weight has no shape yet, .*run the module once on a batch"),
        (lambda: nn.Linear(6, 3, device="meta"), r"weight is on the meta device and has no data; build the module on"),
        (made_in_inference_mode, r"weight was made in torch.inference_mode; build the module outside of it"),
        (lambda: nn.Sequential(torch.jit.script(nn.Linear(6, 3))), r"^0: is a module of torch.jit.script, .*; build"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_weights_that_are_not_ready_are_named(tmp_path: Path, make: Any, message: str) -> None:
    module = make()
    with pytest.raises(ExportError, match=message):
        export_module(module, tmp_path / "a", inputs=[SPECS[0]])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_traced_part_is_exported(tmp_path: Path) -> None:
    module = nn.Sequential(torch.jit.trace(nn.Linear(6, 3), torch.zeros(2, 6)), nn.Dropout(0.3))
    result = export_module(module, tmp_path / "a", inputs=[SPECS[0]], formats=["torchscript"], mc_draws=3)
    assert result.max_error < 1e-5
