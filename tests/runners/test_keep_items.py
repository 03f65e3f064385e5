"""``--map`` and ``--keep`` of data from the user's own code: keys of its items."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import deploykit
from deploykit.errors import DataError, RunError, UsageError
from deploykit.runs.verify_run import verify_run
from deploykit.sources import KEPT, Reading, open_source
from deploykit.sources.keeping import Keeping
from runners.job import run
from tests import handmade

from . import loaders
from .test_factories import FILE

OPTIONS: dict[str, Any] = {"batch_size": 4, "shard_rows": 8, "devices": "cpu", "writer": "parquet"}
ASKED: dict[str, Any] = {"columns": {"x": ["features"]}, "keep": ["name", "label", "box"]}


@pytest.mark.parametrize(
    ("factory", "devices"),
    [
        *((factory, "cpu") for factory in ("labelled_rows", "labelled_loader", "labelled_stream", "labelled_batches")),
        ("labelled_loader", "cpu:2"),
        ("labelled_stream", "cpu:2"),
        *(pytest.param(n, "cpu:2", marks=pytest.mark.exhaustive) for n in ("labelled_rows", "labelled_batches")),
    ],
)
def test_keys_go_with_the_predictions(
    artifact_paths: dict[str, Path], tmp_path: Path, factory: str, devices: str
) -> None:
    for _ in range(2):
        run(artifact_paths["plain"], f"{FILE}:{factory}", tmp_path / "r", **{**OPTIONS, "devices": devices}, **ASKED)
    assert verify_run(tmp_path / "r").ok
    table = pq.read_table(deploykit.merge(tmp_path / "r", tmp_path / "all.parquet")).to_pydict()
    assert table["name"] == ["ä" * (row % 4) for row in range(60)]
    assert table["label"] == list(range(60))
    assert table["box"] == [[row, -row] for row in range(60)]
    wanted = handmade.expected("plain", {"x": loaders.X.numpy()})["logits"]
    np.testing.assert_allclose(table["logits"], wanted, rtol=1e-5, atol=1e-6)


def test_what_is_asked_for_belongs_to_the_job(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    for factory in ("labelled_rows", "labelled_stream"):
        out = tmp_path / factory
        run(artifact_paths["plain"], f"{FILE}:{factory}", out, **OPTIONS, **ASKED)
        with pytest.raises(RunError, match=r"holds another job: keep|drawn for another model, data or columns"):
            run(artifact_paths["plain"], f"{FILE}:{factory}", out, **OPTIONS, **{**ASKED, "keep": ["label"]})


@pytest.mark.parametrize("factory", ["labelled_rows", "labelled_stream"])
@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        (
            {"keep": ("nothing",)},
            DataError,
            "row 0: holds .*'label'.*, and nothing to keep as 'nothing'; correct --keep",
        ),
        ({"keep": ("thing",)}, DataError, "row 0: keep 'thing': a set of object; text and numbers"),
        ({"keep": ("text",)}, DataError, "row 0: keep 'text': several texts in a row"),
        ({"columns": {"x": ("feature",)}}, DataError, r"row 0: holds .*missing \['feature'\]"),
        ({"columns": {"y": ("features",)}}, UsageError, "--map y: the model takes x"),
        ({"columns": {"x": ("features", "label")}}, UsageError, "--map x=features,label: of an item, one key"),
        ({"columns": {"x": ("label",)}}, DataError, r"row 0: input 'x' has the shape \[\], the model takes \[4\]"),
    ],
)
def test_refused(asked: dict[str, Any], kind: type[Exception], said: str, factory: str) -> None:
    reading = Reading(**{"columns": {"x": ("features",)}, **asked})
    with pytest.raises(kind, match=said):
        _first_rows(f"{FILE}:{factory}", reading)


@pytest.mark.parametrize("made", ["{0}", "iter({0})"])
@pytest.mark.parametrize(
    ("value", "said"),
    [("'one'", r"string\[\], and int64\[\]"), ("[1, 2]", r"int64\[2\], and int64"), ("2.5", "float64")],
)
def test_later_rows_must_be_like_the_first(tmp_path: Path, made: str, value: str, said: str) -> None:
    items = made.format(f"[{{'x': x, 'id': 1}}, {{'x': x, 'id': {value}}}]")
    path = tmp_path / "data.py"
    path.write_text(f"import numpy as np\nx = np.ones(4, np.float32)\ndef make():\n    return {items}\n")
    with pytest.raises(DataError, match=f"row.? .*keep 'id': .*{said}.* in the rows before"):
        _first_rows(f"{path}:make", Reading(keep=("id",)))


def test_items_without_keys() -> None:
    for name in ("ragged", "bare"):
        with pytest.raises(DataError, match="row 0: a tuple, which has no keys for --map and --keep"):
            _first_rows(f"{FILE}:{name}", Reading(keep=("label",)), kind="pair")


def _first_rows(target: str, reading: Reading, kind: str = "plain") -> None:
    source: Any = open_source(target, handmade.INPUTS[kind], reading=reading)
    try:
        if hasattr(source, "batches"):
            list(source.batches())
        else:
            source.read(0, 2)
    finally:
        source.close()


def test_a_batch_of_values_keeps_them_as_they_are() -> None:
    """A ``collate_fn`` gives lists, of which numpy would make one type, and cut off NULs at the end of texts."""
    keeping = Keeping(Reading(keep=("id",)), handmade.INPUTS["plain"], "data")
    kept = keeping.batch({"id": ["a\0", "", "\0"]}, 3, "rows 0 to 2")
    assert kept[f"{KEPT}id"].tolist() == ["a\0", "", "\0"]
    assert keeping.row({"id": "b\0"}, "row 3")[f"{KEPT}id"].tolist() == "b\0"
    for values, said in (
        (["a", 1], "1 among other values would become '1'"),
        ([2**53 + 1, 0.5], r"9007199254740993 among other values would become 9007199254740992\.0; give all"),
    ):
        with pytest.raises(DataError, match=rf"rows 3 to 4: keep 'id': {said}"):
            keeping.batch({"id": values}, 2, "rows 3 to 4")
    with pytest.raises(DataError, match="rows 3 to 4: keep 'id': 1 of 2 values are masked"):
        keeping.batch({"id": np.ma.masked_equal([1, 2], 2)}, 2, "rows 3 to 4")
    numbers = Keeping(Reading(keep=("id",)), handmade.INPUTS["plain"], "data")
    given = [1, 0.5, float("nan"), float("inf")]
    assert np.array_equal(numbers.batch({"id": given}, 4, "rows 0 to 3")[f"{KEPT}id"], given, equal_nan=True)
