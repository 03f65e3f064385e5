"""Numbers and sizes in the arithmetic of tensors: both files give what the module gives, whatever the types are."""

import math
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, linspace, nn
from torch.nn.functional import scaled_dot_product_attention

from deploykit.errors import ExportError
from exporters.export import export_module
from tests.exporters.test_monte_carlo import clients, names_of


class Computed(nn.Module):
    """Results of ``(x, mask)`` by name, beside one that draws."""

    def __init__(self, computed: dict[str, Callable[[Tensor, Tensor], Tensor]]) -> None:
        super().__init__()
        self.computed, self.drop = computed, nn.Dropout(0.5)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {name: compute(x, mask) for name, compute in self.computed.items()} | {"drawn": self.drop(x)}


def rooted(x: Tensor, mask: Tensor) -> Tensor:
    return x / math.sqrt(x.shape[1]) + x * np.sqrt(2 * mask.shape[1])


def spaced(x: Tensor, mask: Tensor) -> Tensor:
    """Steps from both ends, whether their number is odd or even."""
    return x * torch.linspace(-1, 3, x.shape[1]) + torch.linspace(0.1, 0.7, 2 * mask.shape[1])[::2]


def half(x: Tensor, _: Tensor) -> Tensor:
    """Tensors of sizes as bounds and as numbers, as in DeBERTa."""
    size = torch.tensor(x.shape[1])
    return x[:, : 1 + (size - 1) // 2].sum(1, keepdim=True) / torch.sqrt(size * 2)


def scaled(x: Tensor, _: Tensor) -> Tensor:
    each = x[:, None, :, None]
    return F.scaled_dot_product_attention(each, each, each, scale=1 / math.sqrt(x.shape[1]))[:, 0, :, 0]


def by_name(x: Tensor, _: Tensor) -> Tensor:
    each = (x * linspace(0, 1, x.shape[1]))[:, None, :, None]
    return scaled_dot_product_attention(each, each, each, scale=1 / math.sqrt(x.shape[1]))[:, 0, :, 0]


def in_full(x: Tensor, _: Tensor) -> Tensor:
    """As rotary embeddings of transformers have it."""
    with torch.autocast("cpu", enabled=False):
        return torch.sin(x.float() @ x.float().mT) @ x


def taken(x: Tensor, mask: Tensor) -> Tensor:
    """With sizes of 1 in either tensor, which are expanded."""
    places = (mask % 3).clamp(max=x.shape[1] - 1)
    one = x[:, :, None].take_along_dim(places[:, :1, None], dim=1)[:, :, 0]
    several = torch.take_along_dim(x[:, None], places[:, None].expand(-1, 2, -1), -1).sum(1)
    return torch.take_along_dim(x, places, 1) + one + several


COMPUTED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a fraction less integers": lambda _, mask: (1.0 - mask) * -10000.0,
    "an integer less integers": lambda _, mask: 3 - mask,
    "an integer less a multiple": lambda _, mask: torch.rsub(mask, 2, alpha=3),
    "a fraction less float64": lambda x, _: 0.1 - x.double(),
    "a fraction of a size less integers": lambda x, mask: (x.shape[1] * 0.5 - mask) * 0.1,
    "a size less numbers": lambda x, _: x.shape[1] - x,
    "tensors of two types": lambda x, mask: torch.rsub(mask, x, alpha=2),
    "integers by a size": lambda x, _: x * (torch.arange(x.shape[1]) / x.shape[1]),
    "integers by an integer": lambda _, mask: mask / 4,
    "roots of sizes": rooted,
    "logarithms of sizes": lambda x, mask: x * math.log(x.shape[1] + 1) / math.log(512) + mask * math.log(9),
    "logarithms of sizes to a base": lambda x, mask: x * math.log(mask.shape[1] * 2, 512),
    "logarithms to the bases two and ten": lambda x, mask: (
        x * math.log2(x.shape[1] + 1) * math.log10(mask.shape[1] + 1)
    ),
    "logarithms by numpy": lambda x, mask: x * np.log(x.shape[1] + 1) / np.log2(mask.shape[1] + 1),
    "logarithms to a base that is a size": lambda x, mask: x * math.log(8, x.shape[1] + 1) + mask * math.log2(9),
    "a size many steps": spaced,
    "tensors of sizes": half,
    "tensors of sizes by name": lambda x, _: x * torch.scalar_tensor(s=x.shape[1], dtype=torch.float32),
    "spaces of float64": lambda x, _: x.double() * torch.linspace(-1, 3, x.shape[1], dtype=torch.float64),
    "a scale made of a size": scaled,
    "functions imported by name": by_name,
    "taken along a dimension": taken,
    "integers left of a size": lambda x, mask: (mask - 3) % x.shape[1] + mask * 5 % (2 * mask.shape[1]),
    "numbers left of a size": lambda x, _: x % (x.shape[1] * 0.3),
    "autocast that is off": lambda x, mask: in_full(x[:, :, None], mask)[:, :, 0],
}


LENGTH = "tensors of sizes"


@pytest.mark.parametrize(
    ("names", "draws"), [([*COMPUTED], None), ([name for name in COMPUTED if name != LENGTH], 3), ([LENGTH], 3)]
)
def test_numbers_and_tensors_of_other_types(names: list[str], draws: int | None, tmp_path: Path) -> None:
    if names == [LENGTH] and torch.__version__.startswith("2.11."):
        pytest.skip("torch 2.11 does not know how long a slice up to a computed size is: refused with draws")
    module = Computed({name: COMPUTED[name] for name in names}).eval()
    specs = ["x:float32[batch,steps]", "mask:int64[batch,steps]"]
    result = export_module(module, tmp_path / "a", inputs=specs, ranges={"mask": (0, 7)}, mc_draws=draws)
    generator = np.random.default_rng(0)
    for steps in (9, 1):
        x, mask = generator.standard_normal((3, steps)).astype(np.float32), generator.integers(0, 7, (3, steps))
        every = module(torch.from_numpy(x), torch.from_numpy(mask))
        for client in clients(result.path, names_of(result)).values():
            found = client({"x": x, "mask": mask})
            for name in names:
                got, wanted = found[name], every[name].numpy()
                assert got.dtype == wanted.dtype, name
                rtol = 1e-12 if wanted.dtype == np.float64 else 1e-6
                # Sums are rounded as the processor adds them up, which near zero is no small part of an element.
                atol = rtol * np.abs(wanted).max()
                np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol, err_msg=name)


def test_logarithms_at_powers_of_the_base_are_torchs(tmp_path: Path) -> None:
    """One made of two others is a little less there, and rounds down to another whole number."""

    class Digits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            zeros = x.double() * 0
            return torch.floor(zeros + math.log10(x.shape[1])) + torch.floor(zeros + math.log2(x.shape[1]))

    module = Digits().eval()
    result = export_module(module, tmp_path / "a", inputs=["x:float32[batch,steps]"])
    client = clients(result.path, names_of(result))["torchscript"]  # ONNX has float32 for it.
    for steps in (8, 1000, 8192, 10_000, 32_768):
        x = np.zeros((1, steps), np.float32)
        np.testing.assert_array_equal(client({"x": x})["output"], module(torch.from_numpy(x)).numpy())


class Sized(nn.Module):
    def __init__(self, compute: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, x.shape[1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_a_size_in_a_narrow_type_is_what_torch_makes_of_it(dtype: torch.dtype, tmp_path: Path) -> None:
    module = Sized(lambda x, size: x[:, : torch.tensor(size).to(dtype)].sum(1))
    result = export_module(module, tmp_path / "a", inputs=["x:float32[batch,steps]"])
    x = np.ones((1, 300 if dtype.itemsize == 1 else 33_000), np.float32)
    for client in clients(result.path, names_of(result)).values():
        assert client({"x": x})["output"] == module(torch.from_numpy(x)).numpy()


QUOTIENTS: dict[str, Callable[[int], float]] = {
    "rounded up": lambda size: -(-size // 7),
    "of a difference": lambda size: (size - 20) // 7,
    "by a negative number": lambda size: size // -7,
    "the rest of a difference": lambda size: (size - 20) % 7,
    "without its sign": lambda size: abs(size - 20),
}


@pytest.mark.parametrize("name", QUOTIENTS)
def test_quotients_of_sizes_are_rounded_down_as_python_does_it(name: str, tmp_path: Path) -> None:
    module = Sized(lambda x, size: x.mean(1) * QUOTIENTS[name](size))
    result = export_module(module, tmp_path / "a", inputs=["x:float32[batch,steps]"])
    for file, client in clients(result.path, names_of(result)).items():
        for size in (1, 2, 6, 7, 8, 13, 19, 20, 21, 27, 28):
            found = client({"x": np.ones((1, size), np.float32)})["output"]
            assert found.item() == QUOTIENTS[name](size), (file, size)


WHOLE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "ceil": lambda x, size: x * math.ceil(math.sqrt(size * size + 1)),
    "floor": lambda x, size: x * math.floor((size * size - 1) ** 0.5),
    "trunc": lambda x, size: x * math.trunc(2 / math.sqrt(size)),
    "whole steps": lambda x, size: x * (np.sqrt(size * size - 1) // 1),
    "round": lambda x, size: x * round(math.sqrt(size)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_number_made_of_a_root_is_refused(name: str, tmp_path: Path) -> None:
    """The root has float32 in ONNX, where the whole number may be the next one."""
    with pytest.raises(
        ExportError,
        match=r"^\(root\) \(test_numbers.py:\d+: .*fixes a dimension that was declared dynamic",
    ):
        export_module(Sized(WHOLE[name]), tmp_path / "a", inputs=["x:float32[batch,steps]"])


def test_half_of_a_size_is_rounded_as_python_does_it(tmp_path: Path) -> None:
    """Of 9 and 17 steps halves are left, which go to the even number; the export holds the file against the module."""
    module = Sized(lambda x, size: x.sum(1) * round(size / 2))
    result = export_module(module, tmp_path / "a", inputs=["x:float32[batch,steps]"], formats=["torchscript"])
    assert result.manifest.tested["steps"] == (9, 12, 17)


def test_a_grid_of_torchs_own_keeps_its_sizes(tmp_path: Path) -> None:
    """``affine_grid`` calls ``linspace`` itself; the export holds the file against the module at other sizes."""
    module = Sized(lambda x, size: F.affine_grid(x[:, :2, :3], [x.shape[0], 1, size, x.shape[2]], align_corners=True))
    inputs = ["x:float32[batch,height,width]"]
    result = export_module(module, tmp_path / "a", inputs=inputs, formats=["torchscript"])
    assert result.max_error < 1e-6


def test_a_root_imported_by_name_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"sqrt\(n\) imported by name \(use math.sqrt\(n\)\)"):
        export_module(Sized(lambda x, size: x / sqrt(size)), tmp_path / "a", inputs=["x:float32[batch,steps]"])


class Levels(nn.Module):
    """What a whole number, or the larger of two, of a logarithm decides."""

    def __init__(self, decide: Callable[[float], float]) -> None:
        super().__init__()
        self.decide = decide

    def forward(self, x: Tensor) -> Tensor:
        return x * self.decide(math.log(x.shape[1]))


@pytest.mark.parametrize("decide", [math.floor, lambda number: max(number, 1.0)], ids=["floor", "max"])
def test_what_a_logarithm_of_a_size_decides_is_refused(decide: Callable[[float], float], tmp_path: Path) -> None:
    words = r"^\(root\) \(test_numbers.py:\d+: .*; use the logarithm of a size as a factor alone"
    with pytest.raises(ExportError, match=words):
        export_module(Levels(decide), tmp_path / "a", inputs=["x:float32[batch,steps]"])


class Less(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * math.log(x.shape[1] - 8)


def test_a_logarithm_bounds_the_sizes_that_have_one(tmp_path: Path) -> None:
    """Of 8 steps the module raises an error, where a file would give an infinite number."""
    found = export_module(Less(), tmp_path / "a", inputs=["x:float32[batch,steps]"])
    assert found.manifest.bounds == {"steps": {"min": 9}}


LOOKUPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "embedding": lambda x, places: F.embedding(places, torch.arange(30.0).view(10, 3)),
    "gather": lambda x, places: x.gather(1, places[:, None]),
    "one_hot": lambda x, places: F.one_hot(places, 10) * x,
    "index_select": lambda x, places: torch.arange(30.0).view(10, 3).index_select(0, places),
    "scatter": lambda x, places: torch.zeros_like(x).scatter(1, places[:, None], x[:, :1]),
    "scatter of a number": lambda x, places: torch.zeros_like(x).scatter(1, places[:, None], 1.0),
    "scatter_add": lambda x, places: x.scatter_add(1, places[:, None], x[:, :1]),
    "scatter_reduce": lambda x, places: x.scatter_reduce(1, places[:, None], x[:, :1] * 2, "amax"),
    "a gather of vectors": lambda x, places: (
        x.view(-1, 10, 1).expand(-1, -1, 3).gather(1, places[:, None, None].expand(-1, 1, 3))
    ),
}


OUTSIDE = r"(?i)out of (data )?(bounds|range)|class values must be (non-negative|smaller)"


class Looked(nn.Module):
    def __init__(self, lookup: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.lookup = lookup

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return self.lookup(x, places)


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_a_place_that_is_none_is_an_error_in_both_formats_as_in_torch(tmp_path: Path, lookup: str) -> None:
    """ONNX counts numbers below zero from the end: the row would get what is there."""
    module = Looked(LOOKUPS[lookup])
    inputs = ["x:float32[batch,10]", "places:int64[batch]"]
    export_module(module, tmp_path / "a", inputs=inputs, ranges={"places": (0, 10)})
    x = np.arange(20, dtype=np.float32).reshape(2, 10)
    right, wrong = {"x": x, "places": np.array([3, 9])}, [{"x": x, "places": np.array([3, bad])} for bad in (-1, 10)]
    expected = module(torch.from_numpy(x), torch.tensor([3, 9])).numpy()
    for client in clients(tmp_path / "a", ["output"]).values():
        assert np.array_equal(client(right)["output"], expected)
        for arrays in wrong:
            with pytest.raises(Exception, match=OUTSIDE):
                client(arrays)
    for arrays in wrong:
        with pytest.raises((IndexError, RuntimeError), match=OUTSIDE):
            module(**{name: torch.from_numpy(array) for name, array in arrays.items()})


@pytest.mark.parametrize("include_self", [True, False])
def test_means_of_what_falls_on_one_place(tmp_path: Path, include_self: bool) -> None:
    """torch's own translation to ONNX keeps the last of the values."""
    module = Looked(lambda x, places: x[:, :4].scatter_reduce(1, places, x, "mean", include_self=include_self))
    inputs, ranges = ["x:float32[batch,10]", "places:int64[batch,10]"], {"places": (0, 4)}
    assert export_module(module, tmp_path / "a", inputs=inputs, ranges=ranges).max_error < 1e-6
    feeds = {"x": np.arange(10, dtype=np.float32)[None], "places": np.array([[0] * 7 + [2] * 3])}
    wanted = module(*map(torch.from_numpy, feeds.values())).numpy()
    for client in clients(tmp_path / "a", ["output"]).values():
        np.testing.assert_allclose(client(feeds)["output"], wanted, rtol=1e-6)


def test_a_number_that_no_table_has_is_an_error_where_the_numbers_are_of_32_bits(tmp_path: Path) -> None:
    module = nn.Embedding(10, 4, padding_idx=0)
    export_module(module, tmp_path / "a", inputs=["input:int32[batch]"], ranges={"input": (0, 10)})
    for client in clients(tmp_path / "a", ["output"]).values():
        with pytest.raises(Exception, match=r"out of (data bounds|range)"):
            client({"input": np.array([3, -1], np.int32)})
