"""Every writer of the table holds every output that it does not refuse, and gives it back bit for bit."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploykit.errors import MissingExtraError, RunError, UsageError
from deploykit.runs.epoch import is_finished
from deploykit.runs.merging import merge_run
from deploykit.runs.verify_run import verify_run
from deploykit.tensors import DTYPES, TensorSpec
from deploykit.writers import WRITERS, Batch, base, csv_table, jsonl, make_writer, rebatch, writer_for_file, zarr_zip
from deploykit.writers.base import TEXT, checked, size_of

from .helpers import OUTPUTS, batch_of, files_of, make_job, run_all

ALL = WRITERS.names()
WITH_TEXT = [name for name in ALL if TEXT in make_writer(name, OUTPUTS).dtypes]
OF_ONE_SHAPE = ["npy", "npz", "zarr"]
ANY_SHAPE = ["arrow", "jsonl", "parquet", "pt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    """Stands in for a ``TensorSpec`` of text: a name, the dtype "string" and a shape, and no numpy dtype."""

    name: str
    shape: tuple[int | str, ...] = ("batch",)
    dtype: str = TEXT

    @property
    def row_shape(self) -> tuple[int | str, ...]:
        return self.shape[1:]


def text(name: str) -> TensorSpec:
    return TensorSpec(name=name, dtype=TEXT, shape=("batch",))


@st.composite
def tables(draw: st.DrawFn, *, dynamic: bool, texts: bool) -> tuple[list[TensorSpec], list[Batch]]:
    """Outputs, and batches of them with every kind of value; dynamic dimensions change between the batches."""
    kinds = st.sampled_from([*DTYPES, TEXT] if texts else DTYPES)
    of_any_size: list[tuple[int | str, ...]] = [("n",), (2, "n"), ("n", 2)] if dynamic else []
    shapes = st.sampled_from([(), (0,), (1,), (3,), (2, 0), (2, 2), (2, 1, 3), *of_any_size])
    names = draw(st.lists(st.sampled_from(["logits.mean", "0", "ä b", 'q"', "x,y", "a.b.c"]), min_size=1, max_size=3))
    specs = []
    for name in dict.fromkeys(names):
        dtype = draw(kinds)
        shape = () if dtype == TEXT else draw(shapes)
        specs.append(TensorSpec(name=name, dtype=dtype, shape=("batch", *shape)))
    batches, start = [], draw(st.integers(0, 2**40))
    for rows in draw(st.lists(st.integers(1, 5), max_size=4)):
        size = draw(st.integers(0, 3))
        outputs = {spec.name: draw(values(spec, rows, size)) for spec in specs}
        batches.append(Batch(sample_ids=np.arange(start, start + rows), outputs=outputs))
        start += rows
    return specs, batches


def values(spec: TensorSpec, rows: int, size: int) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    if spec.dtype == TEXT:
        characters = st.characters(codec="utf-8", exclude_characters="\0")
        return st.lists(st.text(characters, max_size=5), min_size=rows, max_size=rows).map(
            lambda texts: np.array([*texts, None], object)[:-1]
        )
    shape = (rows, *(size if isinstance(d, str) else d for d in spec.row_shape))
    return hnp.arrays(np.dtype(spec.dtype), shape)


def same_bits(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    """Equal to the last bit, but for what kind of NaN it is."""
    if a.dtype == object or a.dtype.kind != "f":
        return a.dtype == b.dtype and np.array_equal(a, b)
    nan = np.isnan(a)
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and np.array_equal(nan, np.isnan(b))
        and a[~nan].tobytes() == b[~nan].tobytes()
    )


def by_row(specs: Sequence[TensorSpec], batches: Iterator[Batch] | list[Batch]) -> list[tuple[int, Batch]]:
    """Every row as a batch of its own: how the rows were cut is the format's affair."""
    rows = [row for batch in batches for row in rebatch([checked(specs, batch)], 1)]
    return [(int(row.sample_ids[0]), row) for row in rows]


def round_trip(folder: Path, name: str, specs: list[TensorSpec], batches: list[Batch]) -> None:
    writer = make_writer(name, specs)
    rows = sum(map(len, batches))
    paths = [folder / f"a.{writer.extension}", folder / f"another.{writer.extension}"]
    for path in paths:
        writer.write(path, iter(batches), rows)
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in paths)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    found, wanted = by_row(specs, writer.read(paths[0])), by_row(specs, batches)
    assert [number for number, _ in found] == [number for number, _ in wanted]
    for (_, a), (_, b) in zip(found, wanted, strict=True):
        for spec in specs:
            assert same_bits(a.outputs[spec.name], b.outputs[spec.name]), (spec, a, b)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25)
@given(st.data())
def test_what_is_written_is_read(tmp_path_factory: Any, name: str, data: st.DataObject) -> None:
    specs, batches = data.draw(tables(dynamic=name in ANY_SHAPE, texts=name in WITH_TEXT))
    if name == "npy":
        specs = [spec for spec in specs if spec.name.isascii()]
        batches = [
            Batch(sample_ids=b.sample_ids, outputs={spec.name: b.outputs[spec.name] for spec in specs}) for b in batches
        ]
    round_trip(tmp_path_factory.mktemp("w"), name, specs, batches)


@settings(max_examples=50)
@given(data=st.data(), size=st.integers(1, 40))
def test_csv_is_read_however_its_blocks_fall(tmp_path_factory: Any, data: st.DataObject, size: int) -> None:
    specs = [text('a\n,"b'), TensorSpec(name="y", dtype="float32", shape=("batch", 2)), text("z")]
    pieces = st.sampled_from(["x", ",", '"', '""', "\n", "\r\n", '"\n', "\n,0\n", "é", ""])
    rows = data.draw(st.lists(st.lists(pieces, max_size=4).map("".join), max_size=6))
    texts = np.array([*rows, None], object)
    outputs = {specs[0].name: texts, "y": np.zeros((len(texts), 2), np.float32), "z": texts[::-1]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_table, "_BLOCK_BYTES", size)
        round_trip(
            tmp_path_factory.mktemp("w"), "csv", specs, [Batch(sample_ids=np.arange(len(texts)), outputs=outputs)]
        )


@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_a_text_longer_than_what_is_read_at_a_time(tmp_path: Path, name: str) -> None:
    texts = np.array(["short", "x" * 5_000_000, 'a,"b"\n' * 1_000_000, "short"], object)
    batch = Batch(sample_ids=np.arange(4), outputs={"note": texts})
    round_trip(tmp_path, name, [text("note")], [batch])


@pytest.mark.parametrize("module", [csv_table, jsonl])
def test_little_becomes_text_at_a_time_and_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    """A batch may hold gigabytes of text, or thousands of columns."""
    specs = [text("note"), *OUTPUTS]
    rows = batch_of(0, 50)
    notes = np.array(["x" * (number % 7) * 100 for number in range(50)], object)
    writer = make_writer(module.__name__.rpartition(".")[2].partition("_")[0], specs)
    batch = Batch(sample_ids=rows.sample_ids, outputs={"note": notes, **rows.outputs})
    writer.write(tmp_path / "whole", iter([batch]), 50)
    seen: list[int] = []
    monkeypatch.setattr(base, "_TEXT_BYTES", 1000)
    monkeypatch.setattr(module, "checked", lambda _, batch: seen.append(size_of(batch.outputs)) or batch)
    writer.write(tmp_path / "pieces", iter([batch]), 50)
    assert max(seen) <= 1000 < sum(seen)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()


@pytest.mark.parametrize("name", ["csv", "jsonl"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_any_bits_of_a_float_survive_text(tmp_path: Path, name: str, dtype: str) -> None:
    """All of float16, and 100,000 random patterns of the others: numbers of every size, subnormal ones too."""
    rng = np.random.default_rng(0)
    bits = np.arange(2**16, dtype=np.uint16) if dtype == "float16" else rng.integers(0, 256, 800_000, np.uint8)
    array = bits.view(dtype)
    spec = TensorSpec(name="x", dtype=dtype, shape=("batch",))
    batch = Batch(sample_ids=np.arange(len(array)), outputs={"x": array})
    writer = make_writer(name, [spec])
    writer.write(tmp_path / "a", iter([batch]), len(array))
    assert same_bits(np.concatenate([got.outputs["x"] for got in writer.read(tmp_path / "a")]), array)


@pytest.mark.parametrize("name", ALL)
def test_no_rows_one_row_and_more_than_a_group(tmp_path: Path, name: str) -> None:
    for rows in (0, 1, 70_001):
        folder = tmp_path / str(rows)
        folder.mkdir()
        batches = [batch_of(start, min(start + 1000, rows)) for start in range(0, rows, 1000)]
        writer = make_writer(name, OUTPUTS)
        writer.write(folder / "a", iter(batches), rows)
        read = list(rebatch(writer.read(folder / "a"), max(rows, 1)))
        assert len(read) == (rows > 0)
        for got in read:
            wanted = batch_of(0, rows)
            assert np.array_equal(got.sample_ids, wanted.sample_ids)
            assert all(np.array_equal(got.outputs[n], wanted.outputs[n]) for n in wanted.outputs)


RAGGED = TensorSpec(name="tokens", dtype="float32", shape=("batch", "seq", 2))


def ragged(rows: int) -> list[Batch]:
    return [
        Batch(sample_ids=np.array([row]), outputs={"tokens": np.full((1, row % 4, 2), row, np.float32)})
        for row in range(rows)
    ]


@pytest.mark.parametrize("name", ANY_SHAPE)
def test_rows_of_every_length(tmp_path: Path, name: str) -> None:
    round_trip(tmp_path, name, [RAGGED], ragged(9))


@pytest.mark.parametrize("name", OF_ONE_SHAPE)
def test_rows_of_two_shapes_are_refused_where_the_format_has_one(tmp_path: Path, name: str) -> None:
    said = r"'tokens' has rows of shape \[1, 2\] from row 1 on, and \[0, 2\] before.*parquet, arrow, jsonl or pt"
    with pytest.raises(RunError, match=said):
        make_writer(name, [RAGGED]).write(tmp_path / "a", iter(ragged(2)), 2)
    assert {path.name for path in tmp_path.iterdir()} <= {"a"}


@pytest.mark.parametrize("name", OF_ONE_SHAPE)
def test_a_dynamic_size_that_stays_the_same(tmp_path: Path, name: str) -> None:
    round_trip(tmp_path, name, [RAGGED], [row for row in ragged(40) if row.outputs["tokens"].shape[1] == 3])
    (tmp_path / "none").mkdir()
    round_trip(tmp_path / "none", name, [RAGGED], [])


def test_csv_refuses_before_any_work() -> None:
    for specs, said in (
        ([RAGGED], r"tokens:float32\[batch,seq,2\] has rows of any size.*--writer jsonl, parquet"),
        ([TensorSpec(name="y", dtype="float32", shape=("b", 200, 100))], "20000 columns.*at most 16384"),
        ([TensorSpec(name="y", dtype="int8", shape=("b", 2)), text("y.1")], r"\['y.1'\] would be the names of two"),
    ):
        with pytest.raises(UsageError, match=said):
            make_writer("csv", specs)


@pytest.mark.parametrize("name", ["npy", "pt"])
def test_text_is_refused_where_it_cannot_be(name: str) -> None:
    with pytest.raises(UsageError, match=rf"writer '{name}': cannot hold id:string\[batch\]; use --writer arrow, csv"):
        make_writer(name, [*OUTPUTS, text("id")])


@pytest.mark.parametrize("name", ["..", "a//b", "/a", "a/.", "a\\b"])
def test_what_is_no_path_in_a_zarr_group_is_refused_before_any_work(name: str) -> None:
    with pytest.raises(UsageError, match=r"is no name of an array.*--writer parquet"):
        make_writer("zarr", [TensorSpec(name=name, dtype="int64", shape=("batch",))])
    make_writer("zarr", [TensorSpec(name="a/b", dtype="int64", shape=("batch",))])


def test_the_last_chunk_of_a_zarr_array_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """zarr fills it up: of 32 rows in chunks of 31 it would write 62."""
    monkeypatch.setattr(zarr_zip, "_CHUNK_BYTES", 31 * 1024)
    specs = [TensorSpec(name="map", dtype="float32", shape=("batch", 254))]  # 1 KiB with the sample id
    round_trip(tmp_path, "zarr", specs, [Batch(sample_ids=np.arange(32), outputs={"map": np.ones((32, 254), "f4")})])
    assert (tmp_path / "a.zarr.zip").stat().st_size < 34 * 1024


def test_an_array_within_another_is_refused_before_any_work() -> None:
    specs = [TensorSpec(name=name, dtype="int64", shape=("batch",)) for name in ("a/b", "a/c", "a")]
    make_writer("zarr", specs[:2])
    for names in (specs, [TensorSpec(name="sample_id/x", dtype="int64", shape=("batch",))]):
        with pytest.raises(UsageError, match=r"would lie within the array '(a|sample_id)'; use --writer parquet"):
            make_writer("zarr", names)


@pytest.mark.parametrize("column", ["a\0b", "\ud800"])
@pytest.mark.parametrize("name", ALL)
def test_a_name_that_some_formats_cut_is_refused(name: str, column: str) -> None:
    with pytest.raises(UsageError, match="Unicode without a NUL; rename the output"):
        make_writer(name, [TensorSpec(name=column, dtype="int64", shape=("batch",))])


@pytest.mark.parametrize("name", ALL)
def test_what_no_format_holds_is_refused(name: str) -> None:
    spec = TensorSpec(name="y", dtype="bfloat16", shape=("batch", 2))
    with pytest.raises(UsageError, match=r"cannot hold y:bfloat16\[batch,2\]; no writer can; export it as float16, "):
        make_writer(name, [spec])


@pytest.mark.parametrize("name", WITH_TEXT)
def test_text_needs_no_numpy_dtype(tmp_path: Path, name: str) -> None:
    """Nothing but the name of the dtype is looked at."""
    specs: Any = [_Text(name="id")]
    batches = [
        Batch(sample_ids=np.arange(2), outputs={"id": np.array(["ä", ""], object)}),
        Batch(sample_ids=np.arange(2, 3), outputs={"id": np.array(['long, "quoted"\n'], object)}),
    ]
    round_trip(tmp_path, name, specs, batches)


@pytest.mark.parametrize("name", WITH_TEXT)
def test_gaps_in_text_stay_gaps_or_are_refused(tmp_path: Path, name: str) -> None:
    batch = Batch(sample_ids=np.arange(3), outputs={"id": np.array(["", None, "None"], object)})
    if name in ("npz", "zarr"):
        with pytest.raises(RunError, match="column 'id': a cell is None; this format has no empty cell"):
            make_writer(name, [text("id")]).write(tmp_path / "a", iter([batch]), 3)
    else:
        round_trip(tmp_path, name, [text("id")], [batch])


@pytest.mark.parametrize("name", WITH_TEXT)
def test_text_that_is_no_unicode_is_refused_with_its_row(tmp_path: Path, name: str) -> None:
    cells = np.array(["a", os.fsdecode(b"caf\xe9.png")], object)
    batch = Batch(sample_ids=np.arange(7, 9), outputs={"id": cells})
    with pytest.raises(RunError, match=r"column 'id', row 8: 'caf\\udce9\.png' is not all Unicode.*rename the file"):
        make_writer(name, [text("id")]).write(tmp_path / "a", iter([batch]), 2)


@pytest.mark.parametrize("name", WITH_TEXT)
def test_what_is_no_text_is_refused(tmp_path: Path, name: str) -> None:
    batch = Batch(sample_ids=np.arange(2), outputs={"id": np.array(["a", 1.5], object)})
    with pytest.raises(RunError, match=r"column 'id': a cell is 1\.5; a column of text holds text or None"):
        make_writer(name, [text("id")]).write(tmp_path / "a", iter([batch]), 2)


@pytest.mark.parametrize(("name", "package", "extra"), [("parquet", "pyarrow", "parquet"), ("zarr", "zarr", "zarr")])
def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, name: str, package: str, extra: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(
        MissingExtraError,
        match=rf"the writer '{name}' needs the package '{package}': pip install 'deploykit\[{extra}\]'",
    ):
        make_writer(name, OUTPUTS)
    assert make_writer("npz", OUTPUTS).can_read()


def test_the_extension_of_a_file_names_its_writer() -> None:
    for name in ALL:
        writer = make_writer(name, OUTPUTS)
        assert type(writer_for_file(f"all.{writer.extension}", OUTPUTS)) is type(writer)
        assert type(writer_for_file(f"ALL.{writer.extension.upper()}", OUTPUTS)) is type(writer)
    with pytest.raises(
        UsageError, match=r"cannot write all\.xlsx: .*ending in \.arrow, .*\.parquet, \.pt, \.zarr\.zip"
    ):
        writer_for_file("all.xlsx", OUTPUTS)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("interval", ["batch", "epoch"])
def test_runs_verify_and_merge_whatever_wrote_them(tmp_path: Path, name: str, interval: str) -> None:
    directory = run_all(tmp_path / "run", make_job(writer=name, write_interval=interval))
    assert is_finished(directory)
    check = verify_run(tmp_path / "run")
    assert (check.rows, check.notes) == (20, ())
    with np.load(merge_run(tmp_path / "run", tmp_path / "all.npz")) as merged:
        assert merged["sample_id"].tolist() == list(range(20))
        assert np.array_equal(merged["logits.mean"], batch_of(0, 20).outputs["logits.mean"])


@pytest.mark.parametrize("name", ALL)
def test_merge_into_every_format(tmp_path: Path, name: str) -> None:
    run_all(tmp_path / "run", make_job(write_interval="epoch"))
    writer = make_writer(name, OUTPUTS)
    paths = [merge_run(tmp_path / "run", tmp_path / f"{stem}.{writer.extension}") for stem in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    (got,) = rebatch(writer.read(paths[0]), 20)
    assert got.sample_ids.tolist() == list(range(20))
    assert np.array_equal(got.outputs["label"], batch_of(0, 20).outputs["label"])
    assert set(files_of(tmp_path)) == {
        *(path.name for path in paths),
        *(f"run/{n}" for n in files_of(tmp_path / "run")),
    }


def test_parquet_is_encoded_as_it_says(tmp_path: Path) -> None:
    from pyarrow.parquet import ParquetFile

    specs = [*OUTPUTS, TensorSpec(name="n", dtype="uint8", shape=("batch", 3)), text("a.name")]
    batch = batch_of(0, 1000, OUTPUTS)
    added = {"n": np.ones((1000, 3), np.uint8), "a.name": np.array(["cat", "dog"] * 500, object)}
    writer = make_writer("parquet", specs)
    writer.write(tmp_path / "a", iter([Batch(sample_ids=batch.sample_ids, outputs=batch.outputs | added)]), 1000)
    with ParquetFile(tmp_path / "a") as file:
        group = file.metadata.row_group(0)
        columns = {(c := group.column(index)).path_in_schema: c for index in range(group.num_columns)}
    assert list(columns) == ["sample_id", "logits.mean.list.element", "label", "n.list.element", "a.name"]
    for name, column in columns.items():
        assert ("DELTA_BINARY_PACKED" in column.encodings) is (name in ("sample_id", "label", "n.list.element"))
        assert column.has_dictionary_page is (name == "a.name")
        assert (column.compression == "ZSTD") is (name == "a.name")
        assert column.is_stats_set is (name == "sample_id")
    assert columns["sample_id"].total_compressed_size < 200
