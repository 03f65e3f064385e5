"""Numbers in an ONNX file are what they are in torch: 64 bits of integers and of float64, and the types of outputs.

The inputs of the checks at export are small; here they are such that 24 bits are not enough.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporters.export import export_module
from exporters.onnx_format.minimum import oldest_runtime

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

LARGE = 5411932.68


class Each(nn.Module):
    """Several functions of one input, each an output."""

    def __init__(self, functions: dict[str, Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: function(x) for name, function in self.functions.items()}


def both(
    functions: dict[str, Callable[[Tensor], Tensor]], rows: NDArray[Any], path: Path
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """What the exported file gives for the rows, and what the functions give."""
    module = Each(functions)
    spec = f"x:{rows.dtype}[batch,{rows.shape[1]}]"
    ranges = {} if rows.dtype.kind == "f" else {"x": (0, min(200, np.iinfo(rows.dtype).max))}
    export_module(module, path / "a", inputs=[spec], ranges=ranges, formats=["onnx"])
    session = ort.InferenceSession(str(path / "a" / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    got = dict(zip(names, session.run(names, {"x": rows}), strict=True))
    return got, {name: value.numpy() for name, value in module(torch.from_numpy(rows)).items()}


def test_whole_quotients_of_large_integers_are_exact(tmp_path: Path) -> None:
    """As the day of a time in seconds; torch's own exporter divides in float32."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        f"{mode}_{index}": lambda x, mode=mode, divisor=divisor: torch.div(x, divisor, rounding_mode=mode)  # type: ignore[misc]
        for mode in ("floor", "trunc")
        for index, divisor in enumerate((86_400, -7, torch.tensor([3, -3, 86_400, -86_400])))
    }
    numbers = np.random.default_rng(0)
    rows = numbers.integers(-(2**62), 2**62, (500, 4))
    rows[:250] = numbers.integers(-86_401, 86_401, (250, 4)) * np.array([1, 2, -7, 86_400])
    got, wanted = both(functions, rows, tmp_path)
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_whole_quotients_of_short_integers_export(tmp_path: Path) -> None:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        mode: lambda x, mode=mode: torch.div(x, 7, rounding_mode=mode)  # type: ignore[misc]
        for mode in ("floor", "trunc")
    }
    got, wanted = both(functions, np.arange(-(2**15), 2**15, dtype=np.int16).reshape(-1, 8), tmp_path)
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_numbers_of_the_code_keep_the_bits_of_float64(tmp_path: Path) -> None:
    """As coordinates in metres less an origin; torch's own exporter rounds the origin to float32."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "difference": lambda x: x - LARGE,
        "sum": lambda x: x + -LARGE,
        "above": lambda x: x > LARGE,
        "equal": lambda x: x == LARGE,
        "filled": lambda x: x - torch.full((3,), LARGE, dtype=torch.float64),
        "new": lambda x: x - x.new_full((3,), LARGE),
        "spaced": lambda x: x - torch.linspace(LARGE, LARGE + 1, 3, dtype=torch.float64),
        "chosen": lambda x: torch.where(x > LARGE, x, LARGE) - LARGE,
        "clamped": lambda x: x.clamp(LARGE - 0.03, LARGE + 0.03) - LARGE,
        "bounded": lambda x: nn.functional.hardtanh(x, LARGE - 0.03, LARGE + 0.03) - LARGE,
        "padded": lambda x: nn.functional.pad(x, (1, 1), value=LARGE) - LARGE,
    }
    rows = LARGE + np.random.default_rng(0).standard_normal((40, 3)) * 0.05
    rows[:3] = LARGE
    got, wanted = both(functions, rows, tmp_path)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-8, err_msg=name)


def test_operations_on_uint8_give_what_torch_gives(tmp_path: Path) -> None:
    """torch's own exporter makes int8 of what is shifted, and bool of any()."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "any": lambda x: x.any(-1),
        "all": lambda x: x.all(-1),
        "half": lambda x: x >> 1,
        "same": lambda x: x >> 0,
        "twice": lambda x: x << 1,
        "float": lambda x: (x << 1).float(),
    }
    got, wanted = both(functions, np.arange(256, dtype=np.uint8).reshape(64, 4), tmp_path)
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype, name
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    assert oldest_runtime(tmp_path / "a" / "model.onnx") == "onnxruntime 1.15", "which compares no uint8"


def test_shifts_of_short_integers_are_those_of_torch(tmp_path: Path) -> None:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "halved": lambda x: x >> 1,
        "gone": lambda x: x >> 9,
        "doubled": lambda x: x << 1,
        "each": lambda x: torch.bitwise_right_shift(x, x & 3),
    }
    got, wanted = both(functions, np.arange(-(2**15), 2**15, 101, dtype=np.int16)[:648].reshape(-1, 4), tmp_path)
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype, name
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_shifts_by_tensors_are_those_of_torch(dtype: Any, tmp_path: Path) -> None:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "right": lambda x: x >> (x & 7),
        "left": lambda x: x << (x & 7),
        "of a number": lambda x: 3 << (x & 7),
        "by a constant": lambda x: x >> torch.arange(4, dtype=x.dtype),
    }
    numbers = np.random.default_rng(0).integers(-(2**20), 2**20, (64, 4)).astype(dtype)
    got, wanted = both(functions, numbers, tmp_path)
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value, strict=True, err_msg=name)


@pytest.mark.parametrize("by", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32])
def test_shifts_by_another_type_are_of_the_type_that_torch_brings_both_to(
    dtype: Any, by: torch.dtype, tmp_path: Path
) -> None:
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "left": lambda x: x << torch.arange(4).to(by),
        "right": lambda x: x >> torch.arange(4).to(by),
        "of both": lambda x: ((x << (x & 3).to(by)) >> 1) * 3,
        "by one number": lambda x: x << torch.tensor(2, dtype=by),
    }
    numbers = np.arange(-128, 128).astype(dtype).reshape(-1, 4)
    got, wanted = both(functions, numbers, tmp_path)
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value, strict=True, err_msg=name)


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_small_integers_and_booleans_are_chosen_by_masks(dtype: Any, tmp_path: Path) -> None:
    """ONNX Runtime has no operation that chooses among values of these types."""

    def assigned(x: Tensor) -> Tensor:
        found = x > 3
        found[x < -3] = True
        return found

    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "where": lambda x: torch.where(x > 0, x, -x),
        "a number": lambda x: torch.where(x > 0, x, 7),
        "filled": lambda x: x.masked_fill(x < 0, 7),
        "filled by a value": lambda x: x.masked_fill(x < 0, torch.tensor(-7, dtype=x.dtype)),
        "booleans": lambda x: torch.where(x > 0, x > 20, x > -20),
        "booleans filled": lambda x: (x > 0).masked_fill(x < -20, True),
        "booleans assigned": assigned,
    }
    got, wanted = both(functions, np.arange(-128, 128, dtype=dtype).reshape(-1, 4), tmp_path)
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value, strict=True, err_msg=name)
