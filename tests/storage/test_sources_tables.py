"""Parquet, Arrow, CSV, JSON Lines and saved data sets, against numpy and the libraries that wrote them."""

import base64
import contextlib
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import DataError, UsageError
from deploykit.sources import KEPT, Reading, Source, open_source, parse_map
from deploykit.sources.arrays import ArraysSource
from deploykit.sources.arrowfile import ArrowFiles
from deploykit.sources.arrowvalues import described_columns
from deploykit.sources.datasetdir import arrow_type
from deploykit.sources.parquet import ParquetSource, _ParquetFiles
from deploykit.storage.locations import DataFile, Found
from deploykit.tensors import TensorSpec

from . import helpers
from .helpers import X

ROWS = 50
VECTORS = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
K = TensorSpec(name="k", dtype="int64", shape=("batch",))

Write = Callable[[Path, pa.Table], None]


def opened(place: Any, inputs: Any = (X,), **reading: Any) -> Source:
    source = open_source(str(place), inputs, reading=Reading(**reading))
    helpers._opened.append(source)
    return source


def write_parquet(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, row_group_size=7)


def write_arrow(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_stream(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_feather(path: Path, table: pa.Table) -> None:
    pyarrow.feather.write_feather(table, path, compression="zstd", chunksize=7)


def write_jsonl(path: Path, table: pa.Table) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


def write_dataset(path: Path, table: pa.Table) -> None:
    import datasets

    datasets.Dataset(table).save_to_disk(str(path), num_shards=3)


BINARY: dict[str, Write] = {
    "rows.parquet": write_parquet,
    "rows.arrow": write_arrow,
    "rows.arrows": write_stream,
    "rows.feather": write_feather,
}
TYPED: dict[str, Write] = {**BINARY, "saved": write_dataset}
LISTS: dict[str, Write] = {**TYPED, "rows.jsonl": write_jsonl}


def vectors(array: np.ndarray[Any, Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def example() -> pa.Table:
    return pa.table({
        "x": vectors(VECTORS),
        "id": pa.array(range(100, 100 + ROWS)),
        "label": [f"größe {row}" for row in range(ROWS)],
        "v": pa.array(np.arange(ROWS * 2, dtype=np.float32).reshape(ROWS, 2).tolist(), pa.list_(pa.float32())),
    })  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_vectors_and_kept_columns_in_any_order_of_reads(tmp_path: Path, name: str) -> None:
    LISTS[name](tmp_path / name, example())
    source = opened(tmp_path / name, keep=("id", "label"))
    assert len(source) == ROWS
    assert [str(spec) for spec in source.kept] == ["id:int64[batch]", "label:string[batch]"]  # type: ignore[attr-defined]
    for start, stop in [(0, 3), (3, 20), (20, 21), (5, 9), (49, 50), (0, 50), (7, 14), (50, 50)]:
        got = source.read(start, stop)
        assert set(got) == {"x", f"{KEPT}id", f"{KEPT}label"}
        assert got["x"].dtype == np.float32
        assert got["x"].flags.c_contiguous
        assert got["x"].flags.writeable
        np.testing.assert_array_equal(got["x"], VECTORS[start:stop])
        np.testing.assert_array_equal(got[f"{KEPT}id"], np.arange(100 + start, 100 + stop))
        assert got[f"{KEPT}label"].tolist() == [f"größe {row}" for row in range(start, stop)]
        got["x"][...] = 0
    np.testing.assert_array_equal(source.read(0, 50)["x"], VECTORS)


@pytest.mark.parametrize("name", LISTS)
def test_the_fingerprint_follows_data_and_columns(tmp_path: Path, name: str) -> None:
    for folder, table in (("a", example()), ("b", example().slice(1))):
        (tmp_path / folder).mkdir()
        LISTS[name](tmp_path / folder / name, table)
    first = opened(tmp_path / "a" / name).fingerprint()
    assert opened(tmp_path / "a" / name).fingerprint() == first
    assert json.loads(json.dumps(first)) == first
    assert str(tmp_path) not in str(first)
    other = opened(tmp_path / "b" / name).fingerprint()
    assert other["sha256"] != first["sha256"]
    two = TensorSpec(name="x", dtype="float64" if "jsonl" in name else "float32", shape=("batch", "n"))
    assert opened(tmp_path / "a" / name, [two], columns={"x": ("v",)}).fingerprint() != first


@pytest.mark.parametrize("name", LISTS)
def test_what_was_indexed_is_taken_over(tmp_path: Path, name: str) -> None:
    LISTS[name](tmp_path / name, example())
    source: Any = opened(tmp_path / name)
    index = json.loads(json.dumps(source.index()))
    again = opened(tmp_path / name, index=index)
    assert again.fingerprint() == source.fingerprint()
    np.testing.assert_array_equal(again.read(13, 44)["x"], VECTORS[13:44])


def scalars(count: int = 4, dtype: str = "float32") -> pa.Table:
    names = [f"f{number}" for number in range(count)]
    values = VECTORS if count == 4 else np.arange(ROWS * count).reshape(ROWS, count)
    return pa.table({name: values[:, number].astype(dtype) for number, name in enumerate(names)})


def write_csv(path: Path, table: pa.Table) -> None:
    import pyarrow.csv

    pyarrow.csv.write_csv(table, path)


SCALARS: dict[str, Write] = {**LISTS, "rows.csv": write_csv}


@pytest.mark.parametrize("name", SCALARS)
def test_single_columns_in_the_order_of_the_data(tmp_path: Path, name: str) -> None:
    SCALARS[name](tmp_path / name, scalars())
    source = opened(tmp_path / name)
    assert "f0, f1, f2, f3 are taken for the input 'x'" in source.notes[0]
    np.testing.assert_array_equal(source.read(5, 33)["x"], VECTORS[5:33])
    swapped = opened(tmp_path / name, columns=parse_map(["x=f3,f2,f1,f0"]))
    np.testing.assert_array_equal(swapped.read(0, ROWS)["x"], VECTORS[:, ::-1])
    kept = TensorSpec(name="x", dtype="float32", shape=("batch", 3))
    narrow: Any = opened(tmp_path / name, [kept], keep=("f1",))
    np.testing.assert_array_equal(narrow.read(0, 9)["x"], VECTORS[:9, [0, 2, 3]])


@pytest.mark.parametrize("name", ["id", "user_id", "userId", "index", "__index_level_0__", "", "Unnamed: 0"])
@pytest.mark.parametrize("features", [3, 4])
def test_what_says_which_row_it_is_becomes_no_input_by_itself(tmp_path: Path, name: str, features: int) -> None:
    measured = ["age", "size", "height", "width"][:features]
    columns = {name: np.arange(ROWS), **{each: VECTORS[:, n] for n, each in enumerate(measured)}}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    write_csv(tmp_path / "rows.csv", pa.table(columns))
    wanted = measured if features == 4 else list(columns)
    for file in ("rows.parquet", "rows.csv"):
        for keep in ((), (name,)) if name and features == 3 else ((),):
            with pytest.raises(DataError) as told:
                opened(tmp_path / file, keep=keep)
            (hint,) = (line for line in str(told.value).splitlines() if "may only say which row" in line)
            assert hint.startswith(repr(name)), hint
            option, mapped = shlex.split(hint[hint.index("--map") :])
            assert option == "--map"
            source = opened(tmp_path / file, columns=parse_map([mapped]))
            assert source.notes == []
            assert source._match.inputs["x"] == tuple(wanted)


@pytest.mark.parametrize("shape", [(4,), ("steps", 4), (2, "steps", 3)])
def test_lists_of_float64_are_told_how_they_become_float32(tmp_path: Path, shape: tuple[int | str, ...]) -> None:
    """The advice is followed to the letter."""
    pandas = pytest.importorskip("pandas")
    sizes = tuple(5 if size == "steps" else int(size) for size in shape)
    values = np.random.default_rng(0).standard_normal((6, *sizes))
    frame = pandas.DataFrame({"x": values.tolist()})
    frame.to_parquet(tmp_path / "rows.parquet")
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", *shape))
    with pytest.raises(DataError) as told:
        opened(tmp_path / "rows.parquet", [spec])
    advice = str(told.value).partition("convert it, in pandas ")[2].splitlines()[0]
    exec(advice, {"frame": frame, "numpy": np})
    frame.to_parquet(tmp_path / "rows.parquet")
    found = opened(tmp_path / "rows.parquet", [spec]).read(0, 6)["x"]
    np.testing.assert_array_equal(found, values.astype(np.float32))


def test_a_pattern_whose_order_is_another_one_says_so(tmp_path: Path) -> None:
    table = pa.table({name: np.ones(3, np.float32) for name in ("radius", "area", "height", "width")})
    pq.write_table(table, tmp_path / "rows.parquet")
    for pattern, is_other in (("*", True), ("[a-h]*", False)):
        spec = TensorSpec(name="x", dtype="float32", shape=("batch", 4 if is_other else 2))
        notes = opened(tmp_path / "rows.parquet", [spec], columns={"x": [pattern]}).notes
        assert ("which is not their order in the data" in notes[0]) is is_other


def test_what_was_meant_is_said(tmp_path: Path) -> None:
    columns = {"": pa.array([0, 1, 2]), **{f"f{n}": np.ones(3, np.float32) for n in range(4)}, "label": ["a"] * 3}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(DataError) as told:
        opened(tmp_path / "rows.parquet", [X], columns={"x": ["f*", "g*"]}, keep=("lable",))
    for part in ("no column g*", "did you mean 'label'?", "(no name)", "index that pandas wrote: write with index=F"):
        assert part in str(told.value)


def test_what_a_pattern_would_find_and_be_refused_for_is_told_in_one_message(tmp_path: Path) -> None:
    columns = {"id": [1, 2, 3], "price": np.ones(3), **{f"f{number}": np.ones(3) for number in range(4)}}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(DataError) as told:
        opened(tmp_path / "rows.parquet")
    for part in ("try --map 'x=f*'", "float64 is not rounded to float32", "frame.astype({'f0': 'float32', ...})"):
        assert part in str(told.value)
    pq.write_table(pa.table({f"f{number}": np.ones(3) for number in range(4)}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="float64 is not rounded") as told:
        opened(tmp_path / "rows.parquet")
    assert "try --map" not in str(told.value), "the columns were found"


def test_of_many_columns_that_are_not_there_some_are_guessed(tmp_path: Path) -> None:
    columns = {f"feature_{number}": np.ones(3, np.float32) for number in range(4)}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(DataError) as told:
        opened(tmp_path / "rows.parquet", columns={"x": [f"featur_{number}" for number in range(100)]})
    assert str(told.value).count("did you mean") == 5


def test_lists_whose_type_has_one_length_are_padded_to_the_size_of_the_model(tmp_path: Path) -> None:
    rows = VECTORS[:, :2]
    write_arrow(tmp_path / "rows.arrow", pa.table({"x": vectors(rows)}))
    padded = opened(tmp_path / "rows.arrow", pad={"x": -1.0}).read(0, ROWS)["x"]
    np.testing.assert_array_equal(padded, np.pad(rows, ((0, 0), (0, 2)), constant_values=-1))
    longer = TensorSpec(name="x", dtype="float32", shape=("batch", 1))
    with pytest.raises(DataError, match="row 3, column 'x': 2 values, the model takes 1; cut the row"):
        opened(tmp_path / "rows.arrow", [longer], pad={"x": -1.0}).read(3, 4)


def test_a_pattern_that_has_found_columns_is_not_among_what_is_not_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({f"num_{n}": np.ones(3, np.float32) for n in range(4)}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="no column 'k'") as told:
        opened(tmp_path / "rows.parquet", [X, K], columns={"x": ["num*"]})
    assert "did you mean" not in str(told.value)


def test_a_number_whose_meaning_its_type_has_is_not_kept_without_it(tmp_path: Path) -> None:
    """pandas writes the months since 1970, with their unit in the metadata alone."""
    meaning = {"ARROW:extension:name": "pandas.period", "ARROW:extension:metadata": '{"freq": "M"}'}
    month = pa.field("month", pa.int64(), metadata=meaning)
    data = pa.table([[648, 649, 650], [True] * 3], schema=pa.schema([month, pa.field("is_on", pa.bool_())]))
    write_parquet(tmp_path / "rows.parquet", data.append_column("k", pa.array([1, 2, 3])))
    with pytest.raises(DataError, match=r"'month' is int64 \(pandas\.period\) and cannot be kept; .*'month': str"):
        opened(tmp_path / "rows.parquet", [K], keep=("month",))
    assert opened(tmp_path / "rows.parquet", [K], keep=("is_on",)).read(0, 1)[f"{KEPT}is_on"].tolist() == [True]


def test_a_pattern_goes_in_natural_order(tmp_path: Path) -> None:
    table = scalars(12)
    write_parquet(tmp_path / "rows.parquet", table.select(sorted(table.column_names)))
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 12))
    source = opened(tmp_path / "rows.parquet", [spec], columns={"x": ("f*",)})
    np.testing.assert_array_equal(source.read(0, ROWS)["x"], np.arange(ROWS * 12).reshape(ROWS, 12))
    assert "in natural order" in source.notes[0]
    assert "f0, f1, f2, f3 ... f11 (12)" in source.notes[0]


def test_a_table_says_what_is_there_and_what_is_needed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows.parquet", example())
    with pytest.raises(DataError) as caught:
        opened(tmp_path / "rows.parquet", [X, K], keep=("nothing",))
    text = str(caught.value)
    for part in ("k        int64", "no column 'k'", "id     int64", "label  text", "no column 'nothing'", "--map"):
        assert part in text, text
    with pytest.raises(UsageError, match="--map names"):
        opened(tmp_path / "rows.parquet", columns={"y": ("x",)})


@pytest.mark.parametrize(
    ("columns", "dtype", "said"),
    [
        ({"x": vectors(VECTORS.astype(np.float64))}, "float32", "x is float64"),
        ({"x": ["a"] * ROWS}, "float32", "x is text"),
        ({"x": vectors(VECTORS[:, :3])}, "float32", "x is float32"),
        ({"x": vectors(VECTORS)}, "int64", "x is float32"),
        ({"x": VECTORS[:, 0]}, "float32", "1 column\\b"),
    ],
)
def test_what_would_lose_something_is_refused_before_the_first_row(
    tmp_path: Path, columns: Any, dtype: str, said: str
) -> None:
    write_parquet(tmp_path / "rows.parquet", pa.table(columns))
    with pytest.raises(DataError, match=said):
        opened(tmp_path / "rows.parquet", [TensorSpec(name="x", dtype=dtype, shape=("batch", 4))])


def test_numbered_columns_are_proposed_where_one_pattern_fits(tmp_path: Path) -> None:
    pixels = {f"pixel_{number}": np.zeros(ROWS, np.float32) for number in range(4)}
    other = {"age": np.zeros(ROWS, np.float32), "label": ["a"] * ROWS}
    ambiguous = {f"f{number}": other["age"] for number in range(4)}
    for more, proposed in (({}, True), ({"pixel_name": ["a"] * ROWS}, False), (ambiguous, False)):
        write_parquet(tmp_path / "rows.parquet", pa.table({**pixels, **other, **more}))
        with pytest.raises(DataError) as caught:
            opened(tmp_path / "rows.parquet", [X])
        assert ("try --map 'x=pixel_*' (columns={'x': ['pixel_*']})" in str(caught.value)) is proposed
    write_parquet(tmp_path / "rows.parquet", pa.table({**pixels, **other}))
    assert opened(tmp_path / "rows.parquet", [X], columns=parse_map(["x=pixel_*"])).read(0, 2)["x"].shape == (2, 4)


def test_wide_floats_come_with_what_to_do(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows.parquet", scalars(dtype="float64"))
    with pytest.raises(DataError, match=r"in silence: .*frame\.astype\(\{'f0': 'float32', \.\.\.\}\)"):
        opened(tmp_path / "rows.parquet", [X])
    write_parquet(tmp_path / "rows.parquet", pa.table({"x": np.zeros((ROWS, 4)).tolist()}))
    with pytest.raises(DataError, match=r"in silence: .*frame\['x'\] = \[numpy\.asarray\(row, 'float32'\) for row in"):
        opened(tmp_path / "rows.parquet", [X])


NUMBERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64", "bool")


@settings(max_examples=200)
@given(
    data=st.data(),
    have=st.sampled_from(NUMBERS),
    want=st.sampled_from(("float32", "float64", "int8", "int64", "uint8")),
)
def test_a_value_arrives_exactly_or_with_an_error_of_its_row(
    tmp_path_factory: Any, data: Any, have: str, want: str
) -> None:
    from deploykit.sources.columns import castable

    edges = [0, 1, 127, 128, 255, 2**24 + 1, 2**31 - 1, 2**53 + 1, 2**63 - 1, -1, -128, -129, -(2**63), 2**64 - 1]
    kind = np.dtype(have).kind
    if kind == "f":
        element = st.floats(width=np.dtype(have).itemsize * 8, allow_nan=False)
    elif kind == "b":
        element = st.booleans()
    else:
        info = np.iinfo(have)
        element = st.sampled_from([edge for edge in edges if info.min <= edge <= info.max])
    values = np.array(data.draw(st.lists(element, min_size=1, max_size=5)), have)
    path = tmp_path_factory.mktemp("a") / "rows.arrow"
    write_arrow(path, pa.table({"k": values}))
    spec = TensorSpec(name="k", dtype=want, shape=("batch",))
    if not castable(have, want, text=False):
        with pytest.raises(DataError, match="k is"):
            opened(path, [spec])
        return
    lossless = [int(value) if kind != "f" else value for value in values.tolist()]
    wanted = [np.dtype(want).type(0)] * len(values)
    bad = None
    for row, value in enumerate(lossless):
        try:
            wanted[row] = np.dtype(want).type(value)
            exact = float(wanted[row]).is_integer() and int(wanted[row]) == value if kind != "f" else True
        except OverflowError:
            exact = False
        if not exact:
            bad = row
            break
    source = opened(path, [spec])
    if bad is None:
        assert source.read(0, len(values))["k"].tolist() == np.array(wanted, want).tolist()
    else:
        with pytest.raises(DataError, match=f"row {bad}, column 'k'"):
            source.read(0, len(values))


@pytest.mark.parametrize("name", [*BINARY, "rows.npz", "rows.safetensors"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_unsigned_numbers_are_kept(tmp_path: Path, name: str, dtype: str) -> None:
    from safetensors.numpy import save_file

    limit = min(np.iinfo(dtype).max, 2**63 - 1)
    values = np.array([[row, limit - row] for row in range(ROWS)], dtype)

    def put(values: np.ndarray[Any, Any]) -> Path:
        if name in BINARY:
            table = pa.table({"x": vectors(VECTORS), "one": values[:, 1], "two": vectors(values)})
            BINARY[name](tmp_path / name, table)
        else:
            arrays = {"x": VECTORS, "one": values[:, 1].copy(), "two": values}
            save_file(arrays, tmp_path / name) if "safe" in name else np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    source: Any = opened(put(values), keep=("one", "two"))
    kept = {"uint8": "uint8", "uint16": "int32"}.get(dtype, "int64")
    assert [spec.dtype for spec in source.kept] == [kept] * 2
    got = source.read(3, 40)
    assert got[f"{KEPT}one"].dtype == got[f"{KEPT}two"].dtype == kept
    np.testing.assert_array_equal(got[f"{KEPT}one"], values[3:40, 1])
    np.testing.assert_array_equal(got[f"{KEPT}two"], values[3:40])
    if dtype == "uint64":
        values[7, 1] = 2**63
        source = opened(put(values), keep=("two",))
        with pytest.raises(DataError, match=r"row 7.*'two'.*9223372036854775808 is beyond int64.*as text"):
            source.read(3, 40)
        np.testing.assert_array_equal(source.read(8, 40)[f"{KEPT}two"], values[8:40])


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)])
def test_a_permuted_tensor_is_read_in_the_order_of_its_dimensions(tmp_path: Path, name: str, order: Any) -> None:
    values = np.arange(ROWS * 24, dtype=np.float32).reshape(ROWS, 24)
    kind = pa.fixed_shape_tensor(pa.float32(), [2, 3, 4], permutation=order)
    column = pa.ExtensionArray.from_storage(kind, vectors(values))
    BINARY[name](tmp_path / name, pa.table({"x": column}))
    # As Arrow's specification says; pyarrow 26 itself mixes the strides up where the order is no exchange of two.
    wanted = values.reshape(ROWS, 2, 3, 4).transpose(0, *(place + 1 for place in order))
    if order not in ((2, 0, 1), (1, 2, 0)):
        np.testing.assert_array_equal(column.to_numpy_ndarray(), wanted)
    flat, cubes = ((24,), wanted.shape[1:])
    for shape in (flat, cubes):
        spec = TensorSpec(name="x", dtype="float32", shape=("batch", *shape))
        source = opened(tmp_path / name, [spec], keep=("x",))
        got = source.read(5, 33)
        np.testing.assert_array_equal(got["x"], wanted[5:33].reshape(-1, *shape))
        np.testing.assert_array_equal(got[f"{KEPT}x"], wanted[5:33].reshape(-1, 24))


ZONES = {"UTC": UTC, "+01:00": timezone(timedelta(hours=1)), "-03:30": timezone(-timedelta(hours=3.5))}


@pytest.mark.parametrize("name", BINARY)
def test_dates_and_times_are_kept_in_the_form_of_iso_8601(tmp_path: Path, name: str) -> None:
    """As Python writes them, whatever has written the data."""
    moments = [datetime(2024, 1 + row % 12, 2, 3, 4, 5, 67 * row, UTC) for row in range(ROWS - 1)]
    naive = [moment.replace(tzinfo=None) for moment in moments]
    columns = {"day": pa.array([*(moment.date() for moment in moments), None]), "naive": pa.array([*naive, None])}
    wanted = {
        "day": [moment.date().isoformat() for moment in moments],
        "naive": [moment.isoformat(timespec="microseconds") for moment in naive],
    }
    for zone, here in ZONES.items():
        columns[zone] = pa.array([*moments, None], pa.timestamp("us", tz=zone))
        local = [moment.astimezone(here).isoformat(timespec="microseconds") for moment in moments]
        wanted[zone] = [text.replace("+00:00", "Z") if zone == "UTC" else text for text in local]
    BINARY[name](tmp_path / name, pa.table({"x": vectors(VECTORS), **columns}))
    got = opened(tmp_path / name, keep=tuple(wanted)).read(0, ROWS)
    for key, texts in wanted.items():
        assert got[f"{KEPT}{key}"].tolist() == [*texts, None]


def test_times_of_a_zone_that_is_not_known_here(tmp_path: Path) -> None:
    times = pa.array(range(ROWS), pa.timestamp("s", tz="Nowhere/City"))
    write_arrow(tmp_path / "rows.arrow", pa.table({"x": vectors(VECTORS), "t": times}))
    source = opened(tmp_path / "rows.arrow", keep=("t",))
    with pytest.raises(DataError, match=r"'t' is timestamp\[s, tz=Nowhere/City\], and its time zone is not known here"):
        source.read(0, 3)


def test_what_cannot_be_kept_says_why(tmp_path: Path) -> None:
    columns = {"x": vectors(VECTORS), "t": pa.array(range(ROWS), pa.duration("us")), "v": [[1, 2]] * ROWS}
    write_parquet(tmp_path / "rows.parquet", pa.table({**columns, "b": [b"id"] * ROWS}))
    with pytest.raises(DataError, match=r"'b' is binary and cannot be kept; .*frame\['b'\]\.str\.decode\('utf-8'\)"):
        opened(tmp_path / "rows.parquet", keep=("b",))
    with pytest.raises(DataError, match=r"'t' is duration\[us\] and cannot be kept; kept are numbers, text, dates"):
        opened(tmp_path / "rows.parquet", keep=("t",))
    with pytest.raises(DataError, match="its type does not say how long the lists are, even if all have one length"):
        opened(tmp_path / "rows.parquet", keep=("v",))


@pytest.mark.parametrize("name", LISTS)
def test_ragged_rows_and_nulls_name_their_row(tmp_path: Path, name: str) -> None:
    rows: list[Any] = VECTORS.tolist()
    for at, value, said in [
        (23, [1.0, 2.0], "row 23.*2 values"),
        (31, None, "row 31.*null"),
        (12, [1.0, None, 2.0, 3.0], "row 12.*null"),
    ]:
        changed = [*rows[:at], value, *rows[at + 1 :]]
        path = tmp_path / str(at) / name
        path.parent.mkdir()
        LISTS[name](path, pa.table({"x": pa.array(changed, pa.list_(pa.float32()))}))
        source = opened(path)
        with pytest.raises(DataError, match=said):
            source.read(7, ROWS)
        if at == 12:
            found = opened(path, allow_nan=True).read(12, 13)["x"]
            np.testing.assert_array_equal(found, np.array([[1, np.nan, 2, 3]], np.float32))


def test_matrices_as_nested_or_flat_lists_and_lengths_that_vary(tmp_path: Path) -> None:
    cubes = np.arange(ROWS * 6, dtype=np.float32).reshape(ROWS, 2, 3)
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 2, 3))
    nested = pa.array(cubes.tolist(), pa.list_(pa.list_(pa.float32())))
    for column in (nested, vectors(cubes.reshape(ROWS, 6)), nested.slice(0)):
        write_parquet(tmp_path / "rows.parquet", pa.table({"x": column}))
        np.testing.assert_array_equal(opened(tmp_path / "rows.parquet", [spec]).read(4, 31)["x"], cubes[4:31])
    lengths = [2] * 7 + [3] * 7
    write_parquet(tmp_path / "rows.parquet", pa.table({"x": [[float(n)] * n for n in lengths]}))
    free = TensorSpec(name="x", dtype="float64", shape=("batch", "n"))
    source = opened(tmp_path / "rows.parquet", [free])
    assert source.read(0, 7)["x"].shape == (7, 2)
    assert source.read(7, 14)["x"].shape == (7, 3)
    with pytest.raises(DataError, match="rows 0 to 13"):
        source.read(0, 14)


@pytest.mark.parametrize("name", BINARY)
def test_directories_and_patterns_go_by_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "many"
    (folder / "deep").mkdir(parents=True)
    for number, start in enumerate((0, 20, 35)):
        place = folder / ("deep" if number == 2 else "") / f"a{number}-{name}"
        BINARY[name](place, example().slice(start, (20, 15, 15)[number]))
    (folder / "_SUCCESS").write_text("")
    (folder / ".hidden.parquet").write_text("")
    for place in (folder, f"{folder}/**/a*"):
        source = opened(place, keep=("id",))
        np.testing.assert_array_equal(source.read(0, ROWS)["x"], VECTORS)
        np.testing.assert_array_equal(source.read(18, 37)[f"{KEPT}id"], np.arange(118, 137))
    assert source.fingerprint()["files"] == 3
    BINARY[name](folder / f"z-{name}", pa.table({"x": [1, 2]}))
    with pytest.raises(DataError, match=r"z-rows.*'x' is int64"):
        opened(folder)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("1", "2", "10"), "10.parquet before 2.parquet"),
        (("part-9", "part-10"), "part-10.parquet before part-9.parquet"),
        (("a/9", "a/10"), "a/10.parquet before a/9.parquet"),
        (("01", "02", "10"), ""),
        (("abcdef", "b", "c10"), ""),
        (("a9", "b10"), ""),
    ],
)
def test_numbers_in_names_that_go_as_text_are_told(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    for name in names:
        place = tmp_path / f"{name}.parquet"
        place.parent.mkdir(exist_ok=True)
        write_parquet(place, example().slice(0, 1))
    for place in (str(tmp_path), f"{tmp_path}/**/*.parquet"):
        notes = [note for note in opened(place).notes if "in the order of their names as text" in note]
        assert len(notes) == bool(said)
    assert not notes or said in opened(tmp_path).notes[-1]


@pytest.mark.parametrize("name", BINARY)
@settings(max_examples=25)
@given(data=st.data())
def test_a_truncated_or_changed_file_is_refused_or_read(tmp_path_factory: Any, name: str, data: Any) -> None:
    path = tmp_path_factory.mktemp("a") / name
    BINARY[name](path, example().select(["x", "id"]))
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:cut])
    with pytest.raises(DataError, match="rows"):
        opened(path)
    place = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
    with contextlib.suppress(DataError):
        source = opened(path)
        source.read(0, len(source))
    helpers.close_opened()


def test_a_large_batch_of_an_arrow_file_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.sources.arrowfile._MAPPED_BYTES", 64)
    monkeypatch.setattr("deploykit.sources.arrowfile.CHUNK_BYTES", 32)
    for name, write in (("a.arrow", write_arrow), ("a.arrows", write_stream), ("a.feather", write_feather)):
        write(tmp_path / name, example())
        source = opened(tmp_path / name, keep=("label",))
        np.testing.assert_array_equal(source.read(2, 48)["x"], VECTORS[2:48])


@pytest.mark.parametrize("name", ["rows.parquet", "rows.feather"])
def test_integers_among_missing_values_are_held_exactly_or_an_error_of_their_row(tmp_path: Path, name: str) -> None:
    x = TensorSpec(name="x", dtype="float32", shape=("batch",))
    for kind in (pa.int64(), pa.bool_()):
        BINARY[name](tmp_path / name, pa.table({"x": pa.array([1, None, 0], pa.int64()).cast(kind)}))
        np.testing.assert_array_equal(opened(tmp_path / name, [x], allow_nan=True).read(0, 3)["x"], [1, np.nan, 0])
    for value in (2**24 + 1, 2**60 + 1):
        BINARY[name](tmp_path / name, pa.table({"x": pa.array([1, None, value], pa.int64())}))
        with pytest.raises(DataError, match=f"row 2, column 'x': {value}, which float32 does not hold"):
            opened(tmp_path / name, [x], allow_nan=True).read(0, 3)


@pytest.mark.parametrize("plain", [True, False])
def test_encrypted_parquet_is_an_error_and_not_the_end_of_the_process(tmp_path: Path, plain: bool) -> None:
    """With ``plain``, only columns are encrypted, and pyarrow has an exception there that nobody can catch."""
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(encryption.KmsClient):  # type: ignore[misc, name-defined]
        def wrap_key(self, key: bytes, _name: str) -> bytes:
            return base64.b64encode(key)

    factory = encryption.CryptoFactory(lambda _: Keys())
    configuration = encryption.EncryptionConfiguration(
        footer_key="f", column_keys={"c": ["x.list.element"]}, plaintext_footer=plain
    )
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), configuration)
    table = pa.table({"x": vectors(VECTORS)})
    with pq.ParquetWriter(tmp_path / "x.parquet", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"x\.parquet: (has encrypted columns|.*encrypted metadata)"):
        opened(tmp_path / "x.parquet")


def test_parquet_with_bytes_behind_its_metadata_is_not_taken_for_encrypted(tmp_path: Path) -> None:
    """Readers go by the metadata's own end, so that a writer may leave room there."""
    write_parquet(tmp_path / "plain.parquet", pa.table({"x": vectors(VECTORS)}))
    whole = (tmp_path / "plain.parquet").read_bytes()
    length = int.from_bytes(whole[-8:-4], "little") + 5
    (tmp_path / "x.parquet").write_bytes(whole[:-8] + bytes(5) + length.to_bytes(4, "little") + b"PAR1")
    assert np.array_equal(opened(tmp_path / "x.parquet").read(0, ROWS)["x"], VECTORS)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow"])
def test_a_table_that_is_replaced_while_it_is_opened_is_noticed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, kind = tmp_path / name, _ParquetFiles if "parquet" in name else ArrowFiles
    schema_of = kind._schema_of

    def replace(files: Any, opened: Any) -> Any:
        schema = schema_of(files, opened)
        BINARY[name](tmp_path / "other", pa.table({"x": vectors(VECTORS)}))
        (tmp_path / "other").replace(place)
        return schema

    BINARY[name](place, pa.table({"x": vectors(VECTORS)}))
    monkeypatch.setattr(kind, "_schema_of", replace)
    source: Any = opened(place)
    source.fingerprint()
    assert not source.is_unchanged()


def test_an_array_that_is_replaced_while_it_is_opened_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, begin = tmp_path / "rows.npz", ArraysSource.__init__

    def late(source: ArraysSource, file: Any, kind: str, open_array: Any, *others: Any) -> None:
        def replacing(name: str) -> Any:
            array = open_array(name)
            np.savez(tmp_path / "other.npz", x=VECTORS)
            (tmp_path / "other.npz").replace(place)
            return array

        begin(source, file, kind, replacing, *others)

    np.savez(place, x=VECTORS)
    monkeypatch.setattr(ArraysSource, "__init__", late)
    source: Any = opened(place)
    assert not source.is_unchanged()


def test_a_store_is_asked_once_for_each_file_of_a_folder(tmp_path: Path) -> None:
    class Counting(LocalFileSystem):  # type: ignore[misc]
        asked: ClassVar[list[str]] = []

        def info(self, path: str, **options: Any) -> Any:
            self.asked.append(path)
            return super().info(path, **options)

    paths = [str(tmp_path / f"{number}.parquet") for number in range(3)]
    for path in paths:
        write_parquet(Path(path), pa.table({"x": vectors(VECTORS)}))
    store = Counting(skip_instance_cache=True)
    files = tuple(DataFile(name=path, path=path, filesystem=store) for path in paths)
    source = ParquetSource(Found(text="rows", files=files), [X], Reading())
    source.fingerprint()
    assert (len(source), sorted(store.asked)) == (3 * ROWS, paths)
    source.close()


@pytest.mark.parametrize("extension", ["parquet", "arrow"])
def test_files_may_differ_in_columns_that_are_not_read(tmp_path: Path, extension: str) -> None:
    """pandas writes a column in which all is missing with a type of its own."""
    others = [{"k": pa.array(["a"] * ROWS)}, {"k": pa.nulls(ROWS)}, {}, {"more": pa.nulls(ROWS)}]
    for number, other in enumerate(others):
        table = pa.table({**other, "x": vectors(VECTORS)})
        if extension == "parquet":
            pq.write_table(table, tmp_path / f"{number}.parquet")
        else:
            pyarrow.feather.write_feather(table, tmp_path / f"{number}.arrow")
    source = opened(tmp_path)
    np.testing.assert_array_equal(source.read(0, 4 * ROWS)["x"], np.tile(VECTORS, (4, 1)))
    with pytest.raises(DataError, match=r"1\.\w+: column 'k' is null, in .*0\.\w+ it is string; the files of one data"):
        opened(tmp_path, keep=("k",))


@pytest.mark.parametrize("name", ["x", "x.mean", "x.list.element"])
def test_few_large_rows_of_parquet_are_decoded_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Sixty-four rows of five million values are more than a gigabyte."""
    monkeypatch.setattr("deploykit.sources.parquet.CHUNK_BYTES", 16)
    monkeypatch.setattr("deploykit.sources.parquet._MOST_BYTES", 64)
    pq.write_table(pa.table({name: vectors(VECTORS)}), tmp_path / "rows.parquet", use_dictionary=False)
    source: Any = opened(tmp_path / "rows.parquet", columns={"x": (name,)})
    np.testing.assert_array_equal(source.read(0, ROWS)["x"], VECTORS)
    assert 1 <= source._cursor.chunk.num_rows <= 4


def test_a_saved_data_set_of_several_splits_names_them(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset(example())}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(DataError, match="both/train"):
        opened(tmp_path / "both")
    np.testing.assert_array_equal(opened(tmp_path / "both" / "train").read(0, ROWS)["x"], VECTORS)


def test_a_saved_data_set_without_rows_has_its_columns(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset(example()).select([]).save_to_disk(str(tmp_path / "none"))
    assert not [*(tmp_path / "none").glob("*.arrow")]
    source: Any = opened(tmp_path / "none", keep=("id", "label"))
    assert len(source) == 0
    assert [str(spec) for spec in source.kept] == ["id:int64[batch]", "label:string[batch]"]
    assert source.read(0, 0)["x"].shape == (0, 4)
    source.fingerprint()
    assert source.is_unchanged()
    with pytest.raises(DataError, match="lable"):
        opened(tmp_path / "none", keep=("lable",))
    for text in ["{}", '{"features": {"x": {"_type": "Value", "dtype": "fl"}}}', '{"features": [5]}']:
        (tmp_path / "none" / "dataset_info.json").write_text(text)
        with pytest.raises(DataError, match=r"dataset_info\.json does not tell the columns"):
            opened(tmp_path / "none")
    (tmp_path / "none" / "dataset_info.json").unlink()
    with pytest.raises(DataError, match=r"no dataset_info\.json"):
        opened(tmp_path / "none")


def test_columns_of_a_saved_data_set_without_rows_are_those_that_one_with_rows_has() -> None:
    import datasets

    names = [
        "bool", "int8", "uint64", "float16", "float64", "string", "large_string", "binary", "null", "date32",
        "time32[s]", "timestamp[ms]", "timestamp[ms, tz=Europe/Berlin]", "duration[ns]", "decimal128(10, 2)",
    ]  # fmt: skip
    value = datasets.Value
    features = datasets.Features({
        **{name: value(name) for name in names},
        "class": datasets.ClassLabel(names=["a"]),
        "list": datasets.Sequence(value("int8")),
        "four": datasets.Sequence(value("float32"), length=4),
        "nested": datasets.Sequence(datasets.Sequence(value("int32"), length=3)),
        "texts": datasets.Sequence(value("string")),
        "array": datasets.Array3D((None, 3, 4), "int16"),
        "dict": {"u": value("bool")},
        "image": datasets.Image(),
    })  # fmt: skip
    found = pa.schema([(name, arrow_type(given)) for name, given in json.loads(json.dumps(features.to_dict())).items()])
    for one, other in zip(described_columns(found, {}), described_columns(features.arrow_schema, {}), strict=True):
        assert replace(one, described="") == replace(other, described="")
    assert arrow_type([{"_type": "Value", "dtype": "int8"}]) == pa.list_(pa.int8())  # As versions below 4 write it.


@pytest.mark.parametrize("protocol", ["memory", "file", "s3"])
@pytest.mark.parametrize("name", [*SCALARS, "rows.npz", "rows.npy", "rows.safetensors"])
def test_urls(tmp_path: Path, bucket: str, protocol: str, name: str) -> None:
    import fsspec
    from safetensors.numpy import save_file

    others: dict[str, Any] = {
        "rows.npz": lambda path, _: np.savez(path, x=VECTORS),
        "rows.npy": lambda path, _: np.save(path, VECTORS),
        "rows.safetensors": lambda path, _: save_file({"x": VECTORS}, path),
    }
    local = tmp_path / name
    {**SCALARS, **others}[name](local, scalars())
    url = f"{bucket}/{name}" if protocol == "s3" else f"{protocol}://{local}"
    if protocol != "file":
        filesystem, place = fsspec.core.url_to_fs(url)
        filesystem.put(str(local), place, recursive=local.is_dir())
    source = opened(url)
    np.testing.assert_array_equal(source.read(11, 43)["x"], VECTORS[11:43])
    assert json.loads(json.dumps(source.fingerprint())) == opened(url).fingerprint()
    with pytest.raises(DataError, match="no such file"):
        opened(f"{url}.missing.csv")


def test_urls_that_cannot_be_read() -> None:
    with pytest.raises(DataError, match=r"gs://bucket/x\.csv.*gcsfs"):
        opened("gs://bucket/x.csv")
    with pytest.raises(DataError, match="known to fsspec are"):
        opened("nonsense://x.csv")
    with pytest.raises(DataError, match="no file matches"):
        opened("memory://nothing/*.csv")


def test_an_error_of_reading_is_told_each_time_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(example().select(["x"]), path, row_group_size=10, compression="none", use_dictionary=False)
    place = path.read_bytes().index(VECTORS[25:26].tobytes())
    column = pq.ParquetFile(path).metadata.row_group(2).column(0)
    damaged = bytearray(path.read_bytes())
    damaged[column.data_page_offset : place] = b"\xff" * (place - column.data_page_offset)
    path.write_bytes(damaged)
    source = opened(path)
    for _ in range(2):
        with pytest.raises(DataError, match=r"rows\.parquet, rows 20 to 29: cannot be read"):
            source.read(25, 26)
        np.testing.assert_array_equal(source.read(10, 20)["x"], VECTORS[10:20])
        np.testing.assert_array_equal(source.read(30, 50)["x"], VECTORS[30:50])


def test_a_second_stream_in_one_file_is_not_lost_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrows"
    write_stream(path, pa.table({"k": [1, 2]}))
    once = path.read_bytes()
    path.write_bytes(once + bytes(4))
    assert len(opened(path, [K])) == 2
    path.write_bytes(once + once)
    with pytest.raises(DataError, match="more follows the mark of its end, such as a second stream"):
        opened(path, [K])


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "rows.feather"])
@pytest.mark.parametrize(("first", "second"), [(50, 50), (50, 3), (3, 50), (0, 50), (50, 0)])
def test_a_second_file_behind_the_first_is_not_lost_in_silence(
    tmp_path: Path, name: str, first: int, second: int
) -> None:
    table = pa.table({"x": vectors(VECTORS)})
    one, other, both = (tmp_path / f"{stem}.{name}" for stem in ("one", "other", "both"))
    BINARY[name](one, table.slice(0, first))
    BINARY[name](other, table.slice(0, second))
    both.write_bytes(one.read_bytes() + other.read_bytes())
    with pytest.raises(DataError, match=r"several Parquet files, one behind the other|such as a second file, whose"):
        opened(both)


@pytest.mark.parametrize("packed", [None, "zstd"])
@pytest.mark.parametrize("rows", [1, ROWS])
def test_an_arrow_file_whose_schema_lies_in_its_footer_alone(tmp_path: Path, rows: int, packed: str | None) -> None:
    """polars writes the message of the schema without its length; readers take the schema of the footer."""
    path = tmp_path / "rows.arrow"
    table = pa.table({"x": vectors(VECTORS), "text": pa.array(["a", "b"] * (ROWS // 2)).dictionary_encode()})
    options = pa.ipc.IpcWriteOptions(compression=packed)
    with pa.ipc.new_file(path, table.schema, options=options) as writer:
        writer.write_table(table.slice(0, rows), max_chunksize=7)
    whole = path.read_bytes()
    length = int.from_bytes(whole[12:16], "little")
    path.write_bytes(whole[:8] + whole[16 : 16 + length] + bytes(8) + whole[16 + length :])
    source = opened(path, keep=("text",)).read(0, rows)
    np.testing.assert_array_equal(source["x"], VECTORS[:rows])
    assert source[f"{KEPT}text"].tolist() == table["text"].to_pylist()[:rows]
    path.write_bytes(path.read_bytes() + whole)
    with pytest.raises(DataError, match="such as a second file, whose rows would be lost"):
        opened(path)


@pytest.mark.parametrize("indexed", [False, True])
def test_parquet_with_indexes_behind_its_data_is_one_file(tmp_path: Path, indexed: bool) -> None:
    texts = [f"PAR1PAR1 {row}" for row in range(ROWS)]
    table = pa.table({"x": vectors(VECTORS), "text": texts})
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path, row_group_size=7, write_page_index=indexed, compression="none", use_dictionary=False)
    source = opened(path, keep=("text",))
    rows = source.read(0, ROWS)
    np.testing.assert_array_equal(rows["x"], VECTORS)
    assert rows[f"{KEPT}text"].tolist() == texts
    path.with_name("two.parquet").write_bytes(path.read_bytes() * 2)
    with pytest.raises(DataError, match="several Parquet files"):
        opened(path.with_name("two.parquet"))


def test_a_page_of_parquet_that_its_checksum_does_not_fit_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"x": vectors(VECTORS)})
    pq.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    whole = path.read_bytes()
    place = whole.index(VECTORS[20].tobytes())
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(DataError, match=r"rows\.parquet, rows 0 to 49: cannot be read .*CRC"):
        opened(path).read(0, ROWS)


def test_a_column_without_a_name_is_not_kept() -> None:
    with pytest.raises(UsageError, match=r"a column without a name.*give it one in the data"):
        Reading(keep=("id", ""))


@pytest.mark.parametrize("name", ["rows.arrow", "rows.arrows", "rows.parquet"])  # Feather writes no such table.
def test_a_name_that_two_columns_have_is_refused(tmp_path: Path, name: str) -> None:
    twice = pa.Table.from_arrays([pa.array([1, 2])] * 2, names=["k", "k"])
    BINARY[name](tmp_path / name, twice)
    with pytest.raises(DataError, match="has more than one column 'k'; give each column a name of its own"):
        opened(tmp_path / name, [K])
    if name == "rows.parquet":
        pq.write_table(twice.select([0]), tmp_path / "a.parquet")
        with pytest.raises(
            DataError, match=r"rows\.parquet: column 'k' is not there, or twice, in .*a\.parquet it is int64"
        ):
            opened(tmp_path, [K])


@pytest.mark.parametrize(
    ("extension", "write"),
    [("parquet", write_parquet), ("arrow", write_arrow), ("csv", write_csv), ("jsonl", write_jsonl)],
)
def test_a_row_that_does_not_fit_is_named_with_its_file(tmp_path: Path, extension: str, write: Write) -> None:
    """Of many files, whoever has to mend it would have to count the rows of all before it."""
    for number in range(3):
        values = [1.0] * 9 + [None if number == 1 else 1.0]
        write(tmp_path / f"{number}.{extension}", pa.table({"y": pa.array(values, pa.float32()), "z": range(10)}))
    source = opened(tmp_path, [TensorSpec(name="y", dtype="float32", shape=("batch",))])
    assert len(source.read(0, 19)["y"]) == 19
    with pytest.raises(DataError, match=rf"/1\.{extension}, row 19, column 'y': no value"):
        source.read(16, 24)
