"""Values out of the ordinary, in the inputs that the checks are fed with and in the outputs that come of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from deploykit.errors import ExportError, UsageError
from deploykit.tensors import parse_spec
from exporters.export import export_module
from exporters.inputs import ModelInputs
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
    result = export_module(Heads(lambda y, x: y), tmp_path / "a", example=example, mc_draws=draws)
    assert result.max_error < 1e-5


@pytest.mark.parametrize("draws", [None, 3])
def test_outputs_of_which_the_checks_saw_no_number_are_said(tmp_path: Path, draws: int | None) -> None:
    module = Heads(lambda y, x: {"root": (y - 1e9).log(), "some": y.log(), "score": y})
    result = export_module(module, tmp_path / "a", inputs=[SPEC], mc_draws=draws)
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
    message = r"the module itself fails on random inputs with {'batch': 5}: IndexError.*--range"
    with pytest.raises(ExportError, match=message):
        export_module(
            Table(), tmp_path / "a", inputs=["ids:int64[batch,4]"], ranges={"ids": (0, 30_000)}, mc_draws=draws
        )
