"""What the beginning of a text file says of its columns: a bad row there is an error of that row alone."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import DataError
from deploykit.sources import KEPT
from deploykit.sources.csvvalues import are_values
from deploykit.sources.textindex import text_pieces
from deploykit.tensors import TensorSpec

from .helpers import X
from .test_sources_tables import opened

ROWS, BAD = 60, 7
NAMES = ["f0", "f1", "f2", "f3"]
VALUES = np.random.default_rng(3).normal(size=(ROWS, 4)).astype(np.float32)


def write_csv(path: Path, bad: list[str] | None) -> Path:
    rows: list[list[Any]] = [[repr(float(value)) for value in row] for row in VALUES]
    if bad is not None:
        rows[BAD] = bad
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([NAMES, *rows])
    return path


def write_json(path: Path, bad: str) -> Path:
    lines = [json.dumps({"x": [float(value) for value in row]}) for row in VALUES]
    lines[BAD] = bad
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (["1", "2", "oops", "4"], r"row 7: column 'f2': 'oops' is no float64; mend the value"),
        (["1", "2", "3"], r"row 7: 3 values, the header names 4 columns; mend the row"),
    ],
)
def test_a_bad_row_of_csv_is_an_error_of_that_row_alone(tmp_path: Path, bad: list[str], said: str) -> None:
    source = opened(write_csv(tmp_path / "rows.csv", bad), [X])
    with pytest.raises(DataError, match=said):
        source.read(0, ROWS)
    assert np.array_equal(source.read(0, BAD)["x"], VALUES[:BAD])
    assert np.array_equal(source.read(BAD + 1, ROWS)["x"], VALUES[BAD + 1 :])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"x": [1, 2, "oops", 4]}', """row 7: field 'x': "oops" is no float64"""),
        ('{"x": [[1], [2], [3], [4]]}', r"row 7: field 'x': \[1\] is no float64"),
        ('{"x": 3}', "row 7: field 'x': 3 is no list"),
        ('{"x": [1, 2, ', "row 7: not valid JSON"),
    ],
)
def test_a_bad_line_of_json_is_an_error_of_that_row_alone(tmp_path: Path, bad: str, said: str) -> None:
    source = opened(write_json(tmp_path / "rows.jsonl", bad), [X])
    with pytest.raises(DataError, match=said):
        source.read(0, ROWS)
    assert np.array_equal(source.read(0, BAD)["x"], VALUES[:BAD])
    assert np.array_equal(source.read(BAD + 1, ROWS)["x"], VALUES[BAD + 1 :])


def test_a_column_with_few_texts_is_kept_as_what_was_written(tmp_path: Path) -> None:
    source = opened(write_csv(tmp_path / "rows.csv", ["1", "2", "3", "n. 4"]), [X], keep=("f3",))
    kept = source.read(0, BAD)[f"{KEPT}f3"]
    assert kept.tolist() == [repr(float(value)) for value in VALUES[:BAD, 3]]
    assert np.array_equal(source.read(0, BAD)["x"], VALUES[:BAD]), "the inputs are not complete without it"


def test_a_column_of_texts_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("v\n" + "\n".join(["1", "2", "3", "red", "blue"] * 5))
    with pytest.raises(DataError, match=r"v is text \(row 3: 'red'\)"):
        opened(path, [TensorSpec(name="v", dtype="float32", shape=("batch",))])


def test_a_file_without_names_loses_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("0.5,-1,2.25,3\n1,2,3,4\n")
    with pytest.raises(DataError, match=r"its first line is 0\.5, -1, 2\.25, 3 \.\.\., numbers and no names"):
        opened(path, [X])
    path.write_text("0,1,2,3\n1,2,3,4\n")
    assert opened(path, [X]).read(0, 1)["x"].tolist() == [[1, 2, 3, 4]]


@settings(max_examples=50)
@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=6))
def test_rows_of_numbers_are_told_from_counted_columns(row: list[float]) -> None:
    counts = [float(number) for number in sorted({int(value) for value in row})]
    assert are_values([repr(value) for value in row])
    assert not are_values([str(int(value)) for value in counts])
    assert not are_values([*map(repr, row), "label"])


@pytest.mark.parametrize("first", ['{"f0": null, "f1": 1}', '{"f1": 1}'])
def test_a_field_without_a_value_keeps_its_place_in_the_order_of_the_data(tmp_path: Path, first: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(first + '\n{"f0": 2, "f1": 3}\n')
    two = TensorSpec(name="x", dtype="float32", shape=("batch", 2))
    found = opened(path, [two], allow_nan=True).read(0, 2)["x"]
    assert np.array_equal(found, np.array([[np.nan, 1], [2, 3]], np.float32), equal_nan=True)


@pytest.mark.parametrize("value", ["null", "[]", "[null]"])
def test_no_other_column_is_taken_where_the_one_of_that_name_has_no_values(tmp_path: Path, value: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"v": {value}, "k": 1.5}}\n' * 3)
    scalar = TensorSpec(name="v", dtype="float32", shape=("batch",))
    with pytest.raises(DataError, match="v is null"):
        opened(path, [scalar], allow_nan=True)
    with pytest.raises(DataError, match="column 'v' is null and cannot be kept"):
        opened(path, [TensorSpec(name="k", dtype="float32", shape=("batch",))], keep=("v",))


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize(("name", "rows"), [("r.csv", ["v,k", "1,7", "2,x"]), ("r.jsonl", ['{"k":null}', '{"k":"x"}'])])
def test_the_last_row_counts_with_and_without_a_line_end(tmp_path: Path, name: str, rows: list[str], end: str) -> None:
    path = tmp_path / name
    path.write_text("\n".join(rows) + end)
    with pytest.raises(DataError, match=r"k is text \(row 1: 'x'\)"):
        opened(path, [TensorSpec(name="k", dtype="float32", shape=("batch",))])


@pytest.mark.parametrize("deep", [80, 900, 20_000])
def test_what_is_nested_deep_in_a_field_that_is_not_read_harms_nothing(tmp_path: Path, deep: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"k": 1, "z": ' + "[" * deep + "]" * deep + '}\n{"k": 2}\n')
    assert opened(path, [TensorSpec(name="k", dtype="float32", shape=("batch",))]).read(0, 2)["k"].tolist() == [1, 2]


def test_a_line_that_the_parser_alone_refuses_takes_no_others_with_it_where_a_worse_one_follows(tmp_path: Path) -> None:
    lines = [json.dumps({"v": row, "k": f"id {row}"}) for row in range(40)]
    lines[7], lines[20] = '{"v": 7, "k": "\\ud800"}', '{"v": 20'
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    source = opened(path, [TensorSpec(name="v", dtype="float32", shape=("batch",))])
    for row in range(40):
        if row in (7, 20):
            with pytest.raises(DataError, match=rf"row {row}: .*mend the line"):
                source.read(row, row + 1)
        else:
            assert source.read(row, row + 1)["v"].tolist() == [row]


@pytest.mark.parametrize("block", [1, 7, 4096])
@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("v\n1\n\n3\n", 1), ("v\r\n\r\n1\r\n", 0), ("v\r1\r2\r\r3", 2), ("\n\nv\n1\n\n\n2\n\n", 1),
        ("v\n1\n\n\n", 1), ("v\n1\n\n\r\n", 1), ("v\n1\n2\n\r", 2), ("v\n\n", 0),
        ("\n\nv\n1\n2", None), ('v\n"a\n\nb"\n1\n', None), ("", None), ("\n\n", None), ('v\n""\n1\n', None),
    ],
)  # fmt: skip
def test_the_first_row_behind_an_empty_line_is_told(text: str, row: int | None, block: int) -> None:
    found: list[int] = []
    text_pieces(io.BytesIO(text.encode()), delimiter=b",", header=True, block_bytes=block, blank=found.append)
    assert found == ([] if row is None else [row])


def test_an_empty_line_in_a_file_of_one_column_is_no_row_that_is_lost(tmp_path: Path) -> None:
    """pyarrow writes a missing value so, and reads no row there."""
    scalar = TensorSpec(name="v", dtype="float32", shape=("batch",))
    pyarrow.csv.write_csv(pa.table({"v": [1.0, None, 3.0]}), tmp_path / "rows.csv")
    with pytest.raises(DataError, match=r"rows\.csv, row 1: an empty line before it, .*; write NA for the value"):
        opened(tmp_path / "rows.csv", [scalar], allow_nan=True)
    (tmp_path / "rows.csv").write_text("v,k\n1,2\n\n3,4\n\n")
    source = opened(tmp_path / "rows.csv", [scalar])
    assert source.read(0, 2)["v"].tolist() == [1, 3]
    assert not any("empty" in note for note in source.notes)


def test_empty_lines_at_the_end_of_a_file_of_one_column_are_told(tmp_path: Path) -> None:
    """Most often they are nothing, and a missing value where pyarrow wrote them."""
    scalar = TensorSpec(name="v", dtype="float32", shape=("batch",))
    for name in ("a", "b", "c"):
        last = 5.0 if name == "b" else None
        pyarrow.csv.write_csv(pa.table({"v": [1.0, 3.0, last]}), tmp_path / f"{name}.csv")
    source = opened(tmp_path / "a.csv", [scalar])
    assert source.read(0, len(source))["v"].tolist() == [1, 3]
    (said,) = (note for note in source.notes if "empty" in note)
    assert said.endswith("a.csv are no rows; write NA where a value is missing")
    source = opened(tmp_path, [scalar])
    assert source.read(0, len(source))["v"].tolist() == [1, 3, 1, 3, 5, 1, 3]
    (said,) = (note for note in source.notes if "empty" in note)
    assert said.startswith("empty lines at the end of ")
    assert "a.csv and 1 more file are no rows" in said
