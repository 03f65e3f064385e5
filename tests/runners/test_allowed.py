"""Values that a model does not look up: refused, or left out, before a runtime gets them."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

import deploykit
from deploykit.allowed import check_allowed, outside
from deploykit.errors import DataError, UsageError
from deploykit.manifest import Manifest
from deploykit.plan import Plan
from deploykit.runs.verify_run import verify_run
from deploykit.sources import Reading, open_source
from deploykit.tensors import Allowed, TensorSpec
from tests.runners.test_loop import Case
from tests.runners.test_on_error import listed
from tests.test_manifest import sealed

WORDS = Allowed(min=0, max=99, module="words", operation="embedding")
IDS = TensorSpec(name="ids", dtype="int64", shape=("batch", 5), allowed=(WORDS,))
ROWS = 60
POISON = {5: (3, 100), 17: (0, -1), 18: (4, 2**40), 33: (2, 30_522)}
"""By row the place in it and the value."""


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.drop, self.head = nn.Embedding(100, 3), nn.Dropout(0.3), nn.Linear(3, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.drop(self.words(ids)).mean(1))


def rows() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 100, (ROWS, 5))


def poisoned() -> np.ndarray[Any, Any]:
    ids = rows()
    for row, (place, value) in POISON.items():
        ids[row, place] = value
    return ids


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tokens") / "model"
    deploykit.export(Tokens(), path, inputs=[IDS], ranges={"ids": (0, 100)}, mc_draws=3)
    return path


def values_of(run: Path) -> np.ndarray[Any, Any]:
    return np.concatenate([np.load(part) for part in sorted((run / "parts").iterdir())])


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_exactly_the_rows_with_such_values_are_left_out(model: Path, tmp_path: Path, runner: str) -> None:
    np.save(tmp_path / "good.npy", rows())
    np.save(tmp_path / "bad.npy", poisoned())
    options: dict[str, Any] = {"runner": runner, "devices": "cpu", "batch_size": 8, "shard_rows": 16}
    deploykit.run(model, tmp_path / "good.npy", tmp_path / "good", **options)
    result = deploykit.run(model, tmp_path / "bad.npy", tmp_path / "bad", **options, on_error="skip")
    assert result.failed_rows == len(POISON)
    assert listed(tmp_path / "bad") == {
        row: f"value {value} in input 'ids' at [{place}], allowed are 0 to 99, because words has 100 rows"
        for row, (place, value) in POISON.items()
    }
    kept = np.delete(np.arange(ROWS), list(POISON))
    found, wanted = values_of(tmp_path / "bad"), values_of(tmp_path / "good")[kept]
    assert found["sample_id"].tolist() == kept.tolist()
    for name in found.dtype.names or ():
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6)
    assert verify_run(tmp_path / "bad").ok


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_the_first_such_row_stops_a_job_that_skips_none(model: Path, tmp_path: Path, runner: str) -> None:
    np.save(tmp_path / "bad.npy", poisoned())
    message = (
        r"row 5: value 100 in input 'ids' at \[3\], allowed are 0 to 99, because words has 100 rows; correct it and "
        "name a new run directory, or give the same command again with --on-error skip, which leaves such rows out"
    )
    options: dict[str, Any] = {"runner": runner, "devices": "cpu", "batch_size": 8}
    with pytest.raises(DataError, match=message):
        deploykit.run(model, tmp_path / "bad.npy", tmp_path / "r", **options)
    result = deploykit.run(model, tmp_path / "bad.npy", tmp_path / "r", **options, on_error="skip")
    assert result.failed_rows == len(POISON), "the advice can be followed"


def test_the_module_itself_is_called_so() -> None:
    """It has no name, and its rows are not those of the table."""
    own = Allowed(min=0, max=9, module="(root)", operation="embedding")
    assert str(own) == "allowed are 0 to 9, because the module looks up one of 10 (embedding)"


def with_inputs(case: Case, *inputs: TensorSpec) -> list[np.ndarray[Any, Any]]:
    """Every batch that the runner of a loop gets from now on."""
    seen = []

    def watched(arrays: Any, **controls: Any) -> Any:
        seen.append(arrays["x"])
        return {"y": (arrays["x"] * 2).astype(np.float32)}

    case.runner.predict = watched  # type: ignore[method-assign]
    manifest = SimpleNamespace(monte_carlo=None, inputs=inputs, outputs=(), bounds={})
    case.runner.artifact = SimpleNamespace(manifest=manifest)
    return seen


@pytest.mark.parametrize("nan", ["error", "allow"])
def test_no_runtime_gets_to_see_them(tmp_path: Path, nan: str) -> None:
    """Nor are they looked for by halving: a device that they break would stay broken."""
    spec = TensorSpec(name="x", dtype="int64", shape=("batch",), allowed=(WORDS,))
    case = Case(tmp_path / "r", Plan(rows=160, shard_rows=32, batch_size=8), on_error="skip", nan=nan)
    case.source.x = np.arange(160)
    seen = with_inputs(case, spec)
    case.pipeline.run()
    assert np.concatenate(seen).tolist() == list(range(100))
    assert len(seen) == 13
    assert list(case.directory.state().failed()) == list(range(100, 160)), "whole parts of them, too"
    assert case.values()["sample_id"].tolist() == list(range(100))


def test_arrays_in_memory_are_looked_at_too(model: Path) -> None:
    with deploykit.load(model) as loaded:
        assert loaded.predict(rows(), draws=1)["output.mean"].shape == (ROWS, 2)
        with pytest.raises(DataError, match=r"row 5: value 100 in input 'ids' at \[3\], .* 100 rows; correct it$"):
            loaded.predict(poisoned())
        with pytest.raises(DataError, match=r"row 1005: value 100 in input 'ids'"):
            loaded.predict(poisoned(), sample_ids=np.arange(1000, 1000 + ROWS))
        with pytest.raises(DataError, match=r"dtype int32, the model takes ids:int64"):
            loaded.predict(poisoned().astype(np.int32))
    assert [each.skipped for each in deploykit.verify(model)] == [None, None]


def test_rows_are_filled_with_what_is_looked_up(tmp_path: Path) -> None:
    pq.write_table(pa.table({"ids": [[1], [2, 3]]}), tmp_path / "rows.parquet")
    spec = TensorSpec(name="ids", dtype="int64", shape=("batch", "steps"), allowed=(WORDS,))
    for fill in (-100, 100):
        message = f"--pad ids={fill}: allowed are 0 to 99, because words has 100 rows; pad with one of these"
        with pytest.raises(UsageError, match=message):
            open_source(str(tmp_path / "rows.parquet"), [spec], reading=Reading(pad={"ids": fill}))
    source = open_source(str(tmp_path / "rows.parquet"), [spec], reading=Reading(pad={"ids": 99}))
    assert source.read(0, 2)["ids"].tolist() == [[1, 99], [2, 3]]


def test_batch_sizes_are_tried_without_them(model: Path, tmp_path: Path) -> None:
    ids = poisoned()
    ids[0] = -1
    np.save(tmp_path / "bad.npy", ids)
    options: dict[str, Any] = {"devices": "cpu", "batch_size": "auto", "on_error": "skip"}
    result = deploykit.run(model, tmp_path / "bad.npy", tmp_path / "r", **options)
    assert result.failed_rows == len(POISON) + 1
    assert any("chosen, rows per second at 1:" in note for note in result.notes)


def test_an_older_artifact_leaves_them_to_the_runtime(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "older")
    path = tmp_path / "older" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["inputs"][0]["allowed"]
    older = sealed(manifest)
    path.write_text(json.dumps(older))
    assert Manifest.from_json(older).digest == older["digest"]
    np.save(tmp_path / "bad.npy", poisoned())
    options: dict[str, Any] = {"devices": "cpu", "batch_size": 8, "runner": "onnx", "on_error": "skip"}
    deploykit.run(tmp_path / "older", tmp_path / "bad.npy", tmp_path / "r", **options)
    failed = listed(tmp_path / "r")
    assert list(failed) == list(POISON)
    assert all(why.startswith("the model: ") for why in failed.values())


@given(hnp.arrays(np.int64, (6, 4), elements=st.integers(-3, 14)), st.sampled_from([None, 0, 1]))
def test_against_a_loop_over_all_values(ids: np.ndarray[Any, Any], first: int | None) -> None:
    last = None if first is None else 2
    claims = (
        Allowed(min=-2, max=11, module="a", operation="index"),
        Allowed(min=0, max=9, module="b", operation="embedding", first_column=first, last_column=last),
    )
    spec = TensorSpec(name="ids", dtype="int64", shape=("batch", 4), allowed=claims)
    wrong: dict[int, list[int]] = {}
    for row, place in np.ndindex(*ids.shape):
        of_both = first is None or first <= place <= 2
        if not -2 <= ids[row, place] <= 11 or (of_both and not 0 <= ids[row, place] <= 9):
            wrong.setdefault(row, []).append(place)
    found = outside([spec], {"ids": ids})
    assert found.keys() == wrong.keys()
    for row, why in found.items():
        shown = [f"value {ids[row, place]} in input 'ids' at [{place}], " for place in wrong[row]]
        assert why.startswith(tuple(shown))
    if wrong:
        with pytest.raises(DataError, match=f"row {100 + min(wrong)}: value "):
            check_allowed([spec], {"ids": ids}, np.arange(100, 106))
    else:
        check_allowed([spec], {"ids": ids}, np.arange(100, 106))


@pytest.mark.parametrize(
    "array", [np.full((2, 5), 1e9), np.full(2, 10**9), np.zeros((0, 5), np.int64), np.zeros((3, 0), np.int64)]
)
def test_arrays_that_are_no_such_input_are_left_to_the_check_of_shapes(array: np.ndarray[Any, Any]) -> None:
    assert outside([IDS], {"ids": array}) == {}
    assert outside([IDS], {}) == {}
