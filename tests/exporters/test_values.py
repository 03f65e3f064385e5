"""Values out of the ordinary, in the inputs that the checks are fed with and in the outputs that come of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploykit import statistics
from deploykit.errors import ExportError, UsageError
from deploykit.tensors import parse_spec
from exporters.export import export_module
from exporters.inputs import ModelInputs
from runners.predict import load, verify_artifact
from tests.exporters.test_outputs import Heads

SPEC = "x:float32[batch,6]"


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.drop = nn.Embedding(300, 3), nn.Dropout(0.4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.drop(self.table(ids.long())).mean(1)


@pytest.mark.parametrize("values", [[[1.0, np.nan, 5.0]], [[1.0, np.inf, -np.inf]], [[np.nan] * 3], np.zeros((0, 3))])
def test_an_example_with_values_that_are_no_numbers_feeds_the_checks_with_numbers(values: Any) -> None:
    example = {"x": np.asarray(values, np.float32)}
    found = ModelInputs(specs=(parse_spec("x:float32[batch,3]"),), example=example).random({"batch": 100}, seed=0)["x"]
    finite = example["x"][np.isfinite(example["x"])]
    assert np.isfinite(found).all()
    if finite.size:
        assert abs(found.mean() - finite.mean()) < 3 * (finite.std() or 1) / np.sqrt(found.size) * 1.5


@pytest.mark.parametrize("draws", [None, 3])
def test_a_missing_value_in_an_example_does_not_stop_an_export(tmp_path: Path, draws: int | None) -> None:
    example = {"x": np.asarray([[1, 2, 3, 4, 5, np.nan]], np.float32)}
    result = export_module(
        Heads(lambda y, x: y), tmp_path / "a", example=example, mc_draws=draws, formats=["torchscript"]
    )
    assert result.max_error < 1e-5


@pytest.mark.parametrize("draws", [None, 3])
def test_outputs_of_which_the_checks_saw_no_number_are_said(tmp_path: Path, draws: int | None) -> None:
    module = Heads(lambda y, x: {"root": (y - 1e9).log(), "some": y.log(), "score": y})
    result = export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=draws, formats=["torchscript"])
    first = "root.mean" if draws else "root"
    assert result.notes[0].startswith(f"output {first}: is NaN or infinite in every golden row")
    assert all(note.startswith("output root") for note in result.notes)


@pytest.mark.parametrize(
    ("spec", "span", "message"),
    [
        ("ids:uint8[batch,4]", (0, 300), r"--range ids=0:300: the input is uint8, which holds 0:256"),
        ("ids:int8[batch,4]", (-200, 5), r"--range ids=-200:5: the input is int8, which holds -128:128"),
        ("ids:int64[batch,4]", (5, 5), r"--range ids=5:5: .*HIGH larger than LOW"),
        ("ids:float32[batch,4]", (0, 300), r"the input is float32, and a range is for integers; .*--example"),
        ("ids:bool[batch,4]", (0, 1), r"the input is bool, and a range is for integers"),
    ],
)
def test_a_range_that_the_input_cannot_hold_is_refused(
    tmp_path: Path, spec: str, span: tuple[int, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export_module(Table(), tmp_path / "a", inputs=[spec], ranges={"ids": span})
    result = export_module(Table(), tmp_path / "a", inputs=["ids:uint8[batch,4]"], ranges={"ids": (0, 256)})
    assert result.max_error < 1e-5


@pytest.mark.parametrize("draws", [None, 3])
def test_a_range_that_the_module_cannot_take_is_said(tmp_path: Path, draws: int | None) -> None:
    message = r"random inputs with {.batch.: 5}: IndexError.*\(test_values\.py:\d+\); .*--range.*a corner and a size"
    with pytest.raises(ExportError, match=message):
        export_module(
            Table(), tmp_path / "a", inputs=["ids:int64[batch,4]"], ranges={"ids": (0, 30_000)}, mc_draws=draws
        )


class Narrow(nn.Module):
    """A classifier of tokens with weights of one dtype."""

    def __init__(self, dtype: torch.dtype, scale: float = 1) -> None:
        super().__init__()
        self.table, self.drop, self.head = nn.Embedding(10, 8), nn.Dropout(0.3), nn.Linear(8, 3)
        self.scale = scale
        self.to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.drop(self.table(ids)).mean(1)) * self.scale


@pytest.mark.parametrize("options", [{}, {"mc_draws": 50, "task": "classification", "keep_draws": True}])
@pytest.mark.parametrize(("dtype", "given"), [(torch.float16, "float16"), (torch.bfloat16, "float32")])
def test_a_module_in_half_precision_behind_integers(
    tmp_path: Path, dtype: torch.dtype, given: str, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    formats = ["torchscript", "onnx"] if dtype is torch.float16 else ["torchscript"]
    module = Narrow(dtype, scale=500)
    result = export_module(
        module, tmp_path / "a", inputs=["ids:int64[batch,4]"], ranges={"ids": (0, 10)}, formats=formats, **options
    )
    assert {output.dtype for output in result.manifest.outputs} == {given}
    assert result.manifest.tolerance == 1e-2
    assert [each.skipped for each in verify_artifact(result.path)] == [None] * len(formats)
    if options:
        with load(result.path) as model:
            found = model.predict(np.arange(8).reshape(2, 4))
        wanted = statistics.summarize(np.swapaxes(found["output.draws"], 0, 1), classification=True)
        assert wanted["std"].min() > 10, "squares of the deviations are too large for float16"
        for name, value in wanted.items():
            np.testing.assert_allclose(found[f"output.{name}"], value, rtol=5e-3, atol=5e-4, err_msg=name)


def test_what_onnxruntime_cannot_compute_is_said(tmp_path: Path) -> None:
    message = r"format onnx: onnxruntime cannot load the exported file: .*--format torchscript.*bfloat16"
    with pytest.raises(ExportError, match=message):
        export_module(
            Narrow(torch.bfloat16), tmp_path / "a", inputs=["ids:int64[batch,4]"], ranges={"ids": (0, 10)}, mc_draws=3
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("draws", [None, 3])
def test_complex_outputs_are_refused_with_what_to_do(tmp_path: Path, draws: int | None) -> None:
    module = Heads(lambda y, x: {"wave": torch.fft.rfft(y), "score": y})
    with pytest.raises(ExportError, match=r"output 'wave': is complex64; .*view_as_real.*--task wave=none"):
        export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=draws)
    result = export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=draws, task="wave=none")
    assert all(output.source == "score" for output in result.manifest.outputs)


def test_two_keys_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"output '1': two keys have this name as text"):
        export_module(Heads(lambda y, x: {1: y, "1": 2 * y}), tmp_path / "a", inputs=[SPEC])


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({}, r"example: holds no arrays; needed is one for each input"),
        (
            {"x": torch.ones(2, 6, dtype=torch.bfloat16)},
            r"example input 'x': is a Tensor of bfloat16; needed",
        ),
        ({"x": [np.ones(2), np.ones(3)]}, r"example input 'x': is a list; needed is an array"),
        ({"x": None}, r"example input 'x': is object with shape \[\]; needed is an array"),
    ],
)
def test_examples_that_are_no_arrays_are_refused(tmp_path: Path, example: Any, message: str) -> None:
    module = Heads(lambda y, x: y)
    with pytest.raises(UsageError, match=message):
        export_module(module, tmp_path / "a", example=example)
    module.example_input_array = example
    with pytest.raises(UsageError, match=message):
        export_module(module, tmp_path / "a")


def test_an_example_of_a_dtype_that_the_module_does_not_take_is_said(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"Error: .*dtype.*Double and Float \(.*\); .*the dtypes that it takes with"):
        export_module(Heads(lambda y, x: y), tmp_path / "a", example={"x": np.ones((2, 6))})
