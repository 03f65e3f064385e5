"""Columns of the data that go with the predictions, from the data to the files, on one rank and on several."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import deploykit
from deploykit.errors import DataError, RunError, UsageError
from deploykit.sources.npy import NpySource
from tests import handmade

ROWS = 700
VALUES = handmade.random_inputs("plain", ROWS)["x"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.parquet"
    columns = {f"f{number}": VALUES[:, number] for number in range(4)}
    names = [f"row {row}" for row in range(ROWS)]
    pq.write_table(pa.table({"id": np.arange(ROWS) * 3, "name": names, **columns}), path, row_group_size=100)
    return path


@pytest.mark.parametrize("writer", ["npy", "pt"])
def test_kept_columns_come_behind_the_outputs(
    tmp_path: Path, artifact_paths: dict[str, Path], data: Path, writer: str
) -> None:
    options = {"columns": {"x": "f*"}, "keep": "id", "writer": writer, "batch_size": 64, "runner": "onnx"}
    result = deploykit.run(artifact_paths["plain"], data, tmp_path / "run", **options, devices="cpu")
    assert any("natural order" in note for note in result.notes)
    merged = np.load(deploykit.merge(tmp_path / "run", tmp_path / "all.npz"))
    assert list(merged) == ["sample_id", "logits", "aux.norm", "id"]
    np.testing.assert_array_equal(merged["id"], np.arange(ROWS) * 3)
    np.testing.assert_allclose(merged["logits"], handmade.expected("plain", {"x": VALUES})["logits"], rtol=1e-5)
    outputs = json.loads((tmp_path / "run" / "run.json").read_text())["outputs"]
    assert outputs[-1] == {"name": "id", "dtype": "int64", "shape": ["batch"]}
    deploykit.verify(tmp_path / "run")


def test_two_ranks_give_the_bytes_of_one(tmp_path: Path, artifact_paths: dict[str, Path], data: Path) -> None:
    for name, devices in (("one", "cpu"), ("two", "cpu:2")):
        deploykit.run(
            artifact_paths["plain"], data, tmp_path / name, columns={"x": ["f*"]}, keep=["id"], batch_size=64,
            runner="onnx", devices=devices, threads=1,
        )  # fmt: skip
    files = sorted(path.name for path in (tmp_path / "one" / "parts").iterdir())
    assert len(files) > 2
    for name in files:
        assert (tmp_path / "one/parts" / name).read_bytes() == (tmp_path / "two/parts" / name).read_bytes()
    assert (tmp_path / "two" / "data-index.json").is_file()


def test_what_is_kept_and_mapped_makes_the_job(tmp_path: Path, artifact_paths: dict[str, Path], data: Path) -> None:
    def again(columns: list[str], keep: list[str]) -> None:
        deploykit.run(artifact_paths["plain"], data, tmp_path / "run", columns={"x": columns}, keep=keep, runner="onnx")

    again(["f*"], ["id"])
    again(["f0", "f1", "f2", "f3"], ["id"])
    with pytest.raises(RunError, match="keep"):
        again(["f*"], [])
    with pytest.raises(RunError, match=r"data\.columns\.x"):
        again(["f1", "f0", "f2", "f3"], ["id"])


def test_text_and_names_that_cannot_be_kept(tmp_path: Path, artifact_paths: dict[str, Path], data: Path) -> None:
    with pytest.raises(UsageError, match=r"writer 'npy': cannot hold name:string.*use --writer .*parquet"):
        deploykit.run(artifact_paths["plain"], data, tmp_path / "run", columns={"x": ["f*"]}, keep=["name"])
    for name in ("logits", "sample_id"):
        with pytest.raises(UsageError, match=f"keep {name}: the predictions have that name"):
            deploykit.run(artifact_paths["plain"], data, tmp_path / "run", keep=[name])
    with pytest.raises(DataError, match="no column 'x'"):
        deploykit.run(artifact_paths["plain"], data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_text_goes_to_a_writer_that_takes_it(
    tmp_path: Path, artifact_paths: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "names.py").write_text(
        "from deploykit.writers import Writer\n"
        "class Names(Writer):\n"
        "    extension = 'txt'\n"
        "    def write(self, path, batches, rows):\n"
        "        path.write_text('\\n'.join(name for batch in batches for name in batch.outputs['name']))\n"
    )
    deploykit.run(
        artifact_paths["plain"], data, tmp_path / "run", columns={"x": ["f*"]}, keep=["name"], runner="onnx",
        writer=f"{tmp_path}/names.py:Names",
    )  # fmt: skip
    parts = sorted((tmp_path / "run" / "parts").iterdir())
    names = [name for part in parts for name in part.read_text().splitlines()]
    assert names == [f"row {row}" for row in range(ROWS)]


def test_what_is_kept_stays_with_its_row_where_others_are_left_out(
    tmp_path: Path, artifact_paths: dict[str, Path]
) -> None:
    values = VALUES.copy()
    values[[0, 3, 65, 699], 1] = np.nan
    names = [f"row {row}" for row in range(ROWS)]
    columns = {f"f{number}": values[:, number] for number in range(4)}
    pq.write_table(pa.table({"name": names, **columns}), tmp_path / "rows.parquet", row_group_size=100)
    result = deploykit.run(
        artifact_paths["plain"], tmp_path / "rows.parquet", tmp_path / "run", columns={"x": ["f*"]}, keep=["name"],
        writer="parquet", batch_size=64, runner="onnx", devices="cpu", on_error="skip",
    )  # fmt: skip
    assert result.failed_rows == 4
    found = pq.read_table(deploykit.merge(tmp_path / "run", tmp_path / "all.parquet"))
    left = [row for row in range(ROWS) if row not in (0, 3, 65, 699)]
    assert found["sample_id"].to_pylist() == left
    assert found["name"].to_pylist() == [names[row] for row in left]
    deploykit.verify(tmp_path / "run")


def test_a_source_that_keeps_nothing_is_refused(
    tmp_path: Path, artifact_paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a plug-in's, which never looked at what was asked for: the columns would be missing, without a word."""
    made: Any = NpySource.__init__
    forgetful = lambda self, found, inputs, reading: made(self, found, inputs, replace(reading, keep=()))  # noqa: E731
    monkeypatch.setattr(NpySource, "__init__", forgetful)
    np.save(tmp_path / "x.npy", VALUES)
    with pytest.raises(UsageError, match=r"^--keep id: NpySource, .* has no attribute kept; leave --keep out"):
        deploykit.run(artifact_paths["plain"], tmp_path / "x.npy", tmp_path / "run", keep="id")
    assert not (tmp_path / "run").exists()
