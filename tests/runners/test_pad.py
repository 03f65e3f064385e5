"""Lists of different lengths, filled up to the longest row of a batch: against numpy, row by row."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import deploykit
from deploykit.errors import DataError, RunError, UsageError
from deploykit.sources import Reading, open_source, parse_pad
from deploykit.sources.ragged import told_lengths
from deploykit.tensors import TensorSpec
from runners import jobdata
from runners.pipeline.company import padding_that_shows
from runners.writing import choose_writing

IDS = TensorSpec(name="ids", dtype="int64", shape=("batch", "steps"))
MASK = TensorSpec(name="mask", dtype="float32", shape=("batch", "steps"))
FIXED = TensorSpec(name="ids", dtype="int32", shape=("batch", 5))
VECTORS = TensorSpec(name="x", dtype="float32", shape=("batch", "steps", 2))

Rows = list[list[Any]]


def write(path: Path, columns: dict[str, Any], kind: str) -> Path:
    table = pa.table(columns)
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif kind == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    else:
        pq.write_table(table, path, row_group_size=4)
    return path


def padded(rows: Rows, fill: float, dtype: str, size: int | None = None) -> np.ndarray:
    """What must come, by a loop over the rows."""
    inner = np.asarray(next((row for row in rows if row), [0]), dtype).shape[1:]
    steps = size or max(1, *(len(row) for row in rows))
    found = np.full((len(rows), steps, *inner), fill, dtype)
    for number, row in enumerate(rows):
        if row:
            found[number, : len(row)] = np.asarray(row, dtype)
    return found


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_rows_are_filled_up_to_the_longest_that_is_read(
    kind: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lengths = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=14))
    ids = [[10 * row + step for step in range(length)] for row, length in enumerate(lengths)]
    if not any(lengths):
        ids[0] = [1]  # A column of empty lists alone has no type.
    path = write(tmp_path_factory.mktemp("rows") / f"rows.{kind}", {"ids": ids}, kind)
    source = open_source(str(path), [IDS], reading=Reading(pad={"ids": -1}))
    for _ in range(4):
        start = data.draw(st.integers(0, len(ids) - 1))
        stop = data.draw(st.integers(start + 1, len(ids)))
        np.testing.assert_array_equal(source.read(start, stop)["ids"], padded(ids[start:stop], -1, "int64"))
    source.close()


def test_lists_of_vectors_and_lists_of_a_fixed_size(tmp_path: Path) -> None:
    rows = [[[1.0, 2.0], [3.0, 4.0]], [], [[5.0, 6.0]]]
    path = write(tmp_path / "rows.parquet", {"x": pa.array(rows, pa.list_(pa.list_(pa.float32())))}, "parquet")
    source = open_source(str(path), [VECTORS], reading=Reading(pad={"x": 0.5}))
    np.testing.assert_array_equal(source.read(0, 3)["x"], padded(rows, 0.5, "float32"))
    ids = [[1, 2], [], [3, 4, 5, 6, 7]]
    path = write(tmp_path / "ids.parquet", {"ids": pa.array(ids, pa.list_(pa.int16()))}, "parquet")
    source = open_source(str(path), [FIXED], reading=Reading(pad={"ids": 0}))
    np.testing.assert_array_equal(source.read(0, 2)["ids"], padded(ids[:2], 0, "int32", 5))
    assert source.joins
    empty = write(tmp_path / "empty.parquet", {"x": pa.array([[], []], pa.list_(pa.list_(pa.float32())))}, "parquet")
    source = open_source(str(empty), [VECTORS], reading=Reading(pad={"x": 2}))
    np.testing.assert_array_equal(source.read(0, 2)["x"], np.full((2, 1, 2), 2, np.float32))
    short = pa.FixedSizeListArray.from_arrays(pa.array(range(6)), 2)
    path = write(tmp_path / "short.parquet", {"ids": short}, "parquet")
    source = open_source(str(path), [IDS], reading=Reading(pad={"ids": 9}))
    np.testing.assert_array_equal(source.read(1, 3)["ids"], [[2, 3], [4, 5]])


@pytest.mark.parametrize(
    ("columns", "inputs", "pad", "error", "message"),
    [
        ({"ids": [[1], [1, 2, 3, 4, 5, 6]]}, [FIXED], {"ids": 0}, DataError, "row 1, .*6 values, the model takes 5"),
        ({"ids": [[1], None]}, [IDS], {"ids": 0}, DataError, "row 1, .*no value"),
        ({"ids": [[1], [2, 3], [4, None]]}, [IDS], {"ids": 0}, DataError, "row 2, .*no value"),
        (
            {"ids": [[1], [2, 2**40]]},
            [FIXED],
            {"ids": 0},
            DataError,
            "row 1, .*1099511627776, which int32",
        ),
        ({"ids": [[1], [2, 3]]}, [IDS], {}, DataError, "row 1, .*2 values, row 0 has 1; pad the rows.*--pad"),
        (
            {"ids": [[1], [1, 2, 3], [4]], "mask": [[1.0], [1.0, 1.0], [1.0]]},
            [IDS, MASK],
            {"ids": 0, "mask": 0},
            DataError,
            "row 1, column 'mask': 2 values, and input 'ids' of this row has 3",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_named(
    columns: dict[str, Any], inputs: list[TensorSpec], pad: dict[str, float], error: type, message: str, tmp_path: Path
) -> None:
    if "mask" in columns:
        columns = columns | {"mask": pa.array(columns["mask"], pa.list_(pa.float32()))}
    path = write(tmp_path / "rows.parquet", columns, "parquet")
    source = open_source(str(path), inputs, reading=Reading(pad=pad))
    with pytest.raises(error, match=message):
        source.read(0, len(source))


@pytest.mark.parametrize(
    ("pad", "message"),
    [
        ({"other": 0}, r"--pad other: the inputs of the model are \['ids'\]"),
        ({"ids": 0.5}, "--pad ids=0.5: int64 does not hold it"),
        ({"ids": float("nan")}, "--pad ids=nan: int64 does not hold it"),
    ],
)
def test_what_cannot_be_filled_is_refused(pad: dict[str, float], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", {"ids": [[1], [2, 3]]}, "parquet")
    with pytest.raises(UsageError, match=message):
        open_source(str(path), [IDS], reading=Reading(pad=pad))


def test_padding_is_for_lists(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", {f"f{number}": [1, 2] for number in range(5)}, "parquet")
    with pytest.raises(UsageError, match="--pad ids: f0, f1, f2, f3 holds single values"):
        open_source(str(path), [FIXED], reading=Reading(pad={"ids": 0}))
    np.save(tmp_path / "rows.npy", np.zeros((2, 5), np.int32))
    with pytest.raises(UsageError, match=r"--pad is for tables whose values are lists .*collate_fn"):
        open_source(str(tmp_path / "rows.npy"), [FIXED], reading=Reading(pad={"ids": 0}))


@pytest.mark.parametrize("text", ["=3", "ids=a", "ids="])
def test_what_is_no_padding_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--pad .*expected"):
        parse_pad([text])


def test_a_number_is_filled_in_as_it_is_written() -> None:
    assert parse_pad(["ids=9007199254740993"]) == {"ids": 2**53 + 1}


class Tokens(nn.Module):
    """The mean of what the tokens of a row stand for, and how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        real = mask.unsqueeze(-1)
        return {"mean": (self.table(ids) * real).sum(1) / real.sum(1).clamp(min=1), "count": mask.sum(1)}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokens]:
    torch.manual_seed(0)
    module = Tokens().eval()
    path = tmp_path_factory.mktemp("tokens") / "model"
    inputs = ["ids:int64[batch,steps]", "mask:float32[batch,steps]"]
    deploykit.export(module, path, inputs=inputs, ranges={"ids": (0, 100)}, formats=["onnx"])
    onnx.checker.check_model(path / "model.onnx")
    return path, module


def sentences(rows: int) -> Rows:
    generator = np.random.default_rng(5)
    return [generator.integers(1, 100, generator.integers(1, 30)).tolist() for _ in range(rows)]


def data_of(rows: Rows, path: Path) -> Path:
    ones = pa.array([[1.0] * len(row) for row in rows], pa.list_(pa.float32()))
    return write(path, {"ids": pa.array(rows, pa.list_(pa.int64())), "mask": ones}, "parquet")


def merged_of(run: Path) -> dict[str, np.ndarray]:
    with np.load(deploykit.merge(run, run.with_suffix(".npz"))) as found:
        return dict(found)


def test_a_run_over_tokens_gives_each_row_its_own_on_any_number_of_ranks(
    tokens: tuple[Path, Tokens], tmp_path: Path
) -> None:
    rows = sentences(101)
    data, options = data_of(rows, tmp_path / "rows.parquet"), {"batch_size": 8, "pad": {"ids": 0, "mask": 0}}
    for name, devices in (("one", "cpu"), ("two", "cpu:2")):
        deploykit.run(tokens[0], data, tmp_path / name, **options, devices=devices, threads=1, shard_rows=16)
    merged = merged_of(tmp_path / "one")
    table = tokens[1].table.weight.detach().numpy()
    np.testing.assert_array_equal(merged["count"], [len(row) for row in rows])
    np.testing.assert_allclose(merged["mean"], [table[row].mean(0) for row in rows], atol=1e-6)
    for part in (tmp_path / "one" / "parts").iterdir():
        assert part.read_bytes() == (tmp_path / "two" / "parts" / part.name).read_bytes()
    command = json.loads((tmp_path / "one" / "run.json").read_text())["command"]
    assert "--pad ids=0 --pad mask=0" in command
    with pytest.raises(RunError, match=r"pad\.ids: 0, asked for 1"):
        deploykit.run(tokens[0], data, tmp_path / "one", **options | {"pad": {"ids": 1, "mask": 0}}, shard_rows=16)


def test_a_row_that_fails_leaves_the_others_of_its_batch(tokens: tuple[Path, Tokens], tmp_path: Path) -> None:
    rows = sentences(40)
    rows[13] = [5, 1000]  # No such token.
    rows[21] = [3, None]
    data, options = data_of(rows, tmp_path / "rows.parquet"), {"batch_size": 8, "pad": {"ids": 0, "mask": 0}}
    result = deploykit.run(tokens[0], data, tmp_path / "run", **options, on_error="skip", devices="cpu")
    assert result.failed_rows == 2
    merged = merged_of(tmp_path / "run")
    sound = [number for number in range(40) if number not in (13, 21)]
    np.testing.assert_array_equal(merged["sample_id"], sound)
    np.testing.assert_array_equal(merged["count"], [len(rows[number]) for number in sound])


class Tagged(Tokens):
    """A value for each token, those of padding too."""

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"tags": self.table(ids) * mask.unsqueeze(-1)}


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tagged]:
    torch.manual_seed(0)
    module, path = Tagged().eval(), tmp_path_factory.mktemp("tagged") / "model"
    inputs = ["ids:int64[batch,steps]", "mask:float32[batch,steps]"]
    deploykit.export(module, path, inputs=inputs, ranges={"ids": (0, 100)}, formats=["onnx"])
    return path, module


TAGGING: dict[str, Any] = {"batch_size": 8, "pad": {"ids": 0, "mask": 0}, "writer": "parquet", "devices": "cpu"}


def test_the_length_of_each_row_tells_its_values_from_those_of_padding(
    tagged: tuple[Path, Tagged], tmp_path: Path
) -> None:
    rows = sentences(40)
    rows[13] = [5, 1000]  # No such token.
    data = data_of(rows, tmp_path / "rows.parquet")
    result = deploykit.run(tagged[0], data, tmp_path / "run", **TAGGING, on_error="skip", shard_rows=16)
    assert any("ids.length says how much of each is its own" in note for note in result.notes)
    found = pq.read_table(deploykit.merge(tmp_path / "run", tmp_path / "all.parquet")).to_pydict()
    assert list(found) == ["sample_id", "tags", "ids.length"], "rows of both inputs are equally long"
    assert found["ids.length"] == [len(rows[number]) for number in found["sample_id"]]
    table = tagged[1].table.weight.detach().numpy()
    for number, tags, length in zip(found["sample_id"], found["tags"], found["ids.length"], strict=True):
        np.testing.assert_array_equal(np.float32(tags[:length]), table[rows[number]])
    assert len(found["sample_id"]) == 39


class Bare(Tokens):
    """A bare tensor with a value for each token."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.table(ids).sum(2) * mask


def test_epoch_files_of_tensors_hold_what_the_model_returned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, rows = Bare().eval(), sentences(20)
    inputs = ["ids:int64[batch,steps]", "mask:float32[batch,steps]"]
    deploykit.export(module, tmp_path / "model", inputs=inputs, ranges={"ids": (0, 100)}, formats=["onnx"])
    data = data_of(rows, tmp_path / "rows.parquet")
    options = TAGGING | {"writer": "pt", "write_interval": "batch_and_epoch", "shard_rows": 16}
    run = tmp_path / "run"
    deploykit.run(tmp_path / "model", data, run, **options)
    predictions = torch.load(run / "predictions_0.pt", weights_only=True)
    (indices,) = torch.load(run / "batch_indices_0.pt", weights_only=True)
    assert [len(each) for each in indices] == [8, 8, 4]
    table = module.table.weight.detach().numpy().sum(1)
    for prediction, numbers in zip(predictions, indices, strict=True):
        ids = padded([rows[number] for number in numbers], 0, "int64")
        np.testing.assert_allclose(prediction, table[ids] * (ids > 0), atol=1e-6)
    assert list(torch.load(run / "parts" / "part-000000.pt", weights_only=True)) == ["sample_id", "output"]
    deploykit.run(tmp_path / "model", data, tmp_path / "tables", **options | {"writer": "parquet"})
    assert pq.read_table(tmp_path / "tables" / "predictions_0.parquet")["ids.length"].to_pylist() == [*map(len, rows)]


def test_a_run_that_began_without_lengths_is_not_resumed_with_them(
    tagged: tuple[Path, Tagged], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = data_of(sentences(40), tmp_path / "rows.parquet"), tmp_path / "run"
    with monkeypatch.context() as before:
        before.setattr(jobdata, "told_lengths", lambda *_: ())
        deploykit.run(tagged[0], data, run, **TAGGING, shard_rows=16)
    with pytest.raises(
        RunError, match=r"another version .*data\.lengths: .*\['ids'\].*with that version, or name a new"
    ):
        deploykit.run(tagged[0], data, run, **TAGGING, shard_rows=16)


def test_a_column_that_has_the_name_of_a_length_is_refused(tagged: tuple[Path, Tagged], tmp_path: Path) -> None:
    data = data_of(sentences(4), tmp_path / "rows.parquet")
    with pytest.raises(UsageError, match=r"keep ids\.length: the predictions have that name already"):
        deploykit.run(tagged[0], data, tmp_path / "run", **TAGGING, keep=["ids.length"])


@pytest.mark.parametrize(
    ("inputs", "output", "told"),
    [
        ([IDS, MASK], ("steps", 3), ("ids",)),
        ([IDS, MASK], (3,), ()),
        ([IDS, MASK], ("steps // 2",), ("ids",)),
        ([FIXED], (5,), ("ids",)),
        ([FIXED], (4,), ()),
        ([IDS, TensorSpec(name="other", dtype="float32", shape=("batch", "others"))], ("others",), ("other",)),
        ([TensorSpec(name="x", dtype="float32", shape=("batch",)), MASK], ("steps",), ("mask",)),
    ],
)
def test_whose_lengths_are_told(inputs: list[TensorSpec], output: tuple[int | str, ...], told: tuple[str, ...]) -> None:
    outputs = [TensorSpec(name="y", dtype="float32", shape=("batch", *output))]
    padded = [spec.name for spec in inputs if spec.row_shape]
    assert told_lengths(padded, inputs, outputs) == told
    assert told_lengths([], inputs, outputs) == ()


class Placed(Tokens):
    """Tokens with a vector for each of 40 places, and no more, as BERT has 512."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, 40, 3))

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        real = mask.unsqueeze(-1)
        return {"sum": ((self.table(ids) + self.places[:, : ids.shape[1]]) * real).sum(1)}


def test_a_row_that_is_too_long_is_named_and_leaves_the_others_of_its_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, rows = Placed().eval(), sentences(40)
    rows[13] = [7] * 41
    inputs = ["ids:int64[batch,steps]", "mask:float32[batch,steps]"]
    deploykit.export(module, tmp_path / "model", inputs=inputs, ranges={"ids": (0, 100)}, formats=["onnx"])
    data, pad = data_of(rows, tmp_path / "rows.parquet"), {"ids": 0, "mask": 0}
    with pytest.raises(
        DataError, match=r"^row 13: dimension steps is 41, .*at most 40; shorten it and .*--on-error skip"
    ):
        deploykit.run(tmp_path / "model", data, tmp_path / "failed", pad=pad, batch_size=8, devices="cpu")
    for number, size in enumerate((8, "auto")):
        run = tmp_path / f"skipped{number}"
        deploykit.run(tmp_path / "model", data, run, pad=pad, batch_size=size, on_error="skip", devices="cpu")
        (failed,) = (run / "failed.jsonl").read_text().splitlines()
        assert json.loads(failed)["sample_id"] == 13
        assert json.loads(failed)["why"] == "dimension steps is 41, and the code of the model allows at most 40"
        merged = merged_of(run)
        sound = [number for number in range(40) if number != 13]
        np.testing.assert_array_equal(merged["sample_id"], sound)
        table, places = module.table.weight.detach().numpy(), module.places.detach().numpy()[0]
        wanted = [(table[rows[each]] + places[: len(rows[each])]).sum(0) for each in sound]
        np.testing.assert_allclose(merged["sum"], wanted, atol=1e-4)


class LookedUp(Tokens):
    """The vectors of its places are looked up, as in GPT-2, so that no size in its code says how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(40, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        places = self.places(torch.arange(ids.shape[1]))
        return {"sum": ((self.table(ids) + places) * mask.unsqueeze(-1)).sum(1)}


def test_a_row_that_is_too_long_for_a_lookup_leaves_the_others_of_its_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, rows = LookedUp().eval(), sentences(40)
    rows[13] = [7] * 41
    inputs = ["ids:int64[batch,steps]", "mask:float32[batch,steps]"]
    deploykit.export(module, tmp_path / "model", inputs=inputs, ranges={"ids": (0, 100)}, formats=["onnx"])
    data, options = data_of(rows, tmp_path / "rows.parquet"), {"pad": {"ids": 0, "mask": 0}, "batch_size": 8}
    result = deploykit.run(tmp_path / "model", data, tmp_path / "run", **options, on_error="skip", devices="cpu")
    assert result.failed_rows == 1
    merged = merged_of(tmp_path / "run")
    sound = [number for number in range(40) if number != 13]
    np.testing.assert_array_equal(merged["sample_id"], sound)
    table, places = module.table.weight.detach().numpy(), module.places.weight.detach().numpy()
    wanted = [(table[rows[each]] + places[: len(rows[each])]).sum(0) for each in sound]
    np.testing.assert_allclose(merged["sum"], wanted, atol=1e-4)


def test_the_batch_size_may_be_found_by_trying(tokens: tuple[Path, Tokens], tmp_path: Path) -> None:
    data = data_of(sentences(64), tmp_path / "rows.parquet")
    result = deploykit.run(
        tokens[0], data, tmp_path / "run", batch_size="auto", pad={"ids": 0, "mask": 0}, devices="cpu"
    )
    assert result.rows == result.computed_rows == 64


def test_what_pads_is_said_in_words(tokens: tuple[Path, Tokens], tmp_path: Path) -> None:
    data = data_of(sentences(4), tmp_path / "rows.parquet")
    with pytest.raises(UsageError, match="pad 'ids': of type str, expected what rows of an input are filled with"):
        deploykit.run(tokens[0], data, tmp_path / "run", pad="ids")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "pad", "is_refused"),
    [
        (("steps", 3), True, True),
        ((3,), True, False),
        (("steps", 3), False, False),
        # Sizes of inputs that are not padded, or along which rows are not.
        (("features",), True, False),
        (("width", 3), True, False),
        (("features", "steps"), True, True),
        (("other",), True, True),
    ],
)
def test_strided_rows_of_batches_of_other_sizes_are_refused_before_any_is_predicted(
    shape: tuple[int | str, ...], pad: bool, is_refused: bool
) -> None:
    outputs = [TensorSpec(name="states", dtype="float32", shape=("batch", *shape))]
    options = {"writer": "pt", "writer-arg": None, "write-interval": "epoch", "layout": "strided:2"}
    inputs = [
        TensorSpec(name="ids", dtype="float32", shape=("batch", "steps", "width")),
        TensorSpec(name="x", dtype="float32", shape=("batch", "features")),
    ]
    said = r"layout 'strided:2': .*the output 'states' has, too \((steps|other)\); use --layout contiguous"
    with pytest.raises(UsageError, match=said) if is_refused else contextlib.nullcontext():
        choose_writing({**options, "pad": {"ids": 0.0} if pad else {}}, outputs, 1, inputs)


def test_a_row_that_fails_alone_is_told_with_its_error() -> None:
    """Whether that is for its length or not: what the padding does is not known then."""
    rows = {"ids": np.array([[1, 2, 3], [4, 0, 0]])}

    def fail(inputs: Any, ids: Any) -> Any:
        assert inputs["ids"].tolist() == [[4]]
        raise ValueError("too short, or not")

    def read(ids: Any) -> Any:
        return {"ids": rows["ids"] if ids.tolist() == [7] else rows["ids"][1:, :1]}

    said = padding_that_shows(None, np.array([7, 8]), rows, {}, read, fail)  # type: ignore[arg-type]
    assert said is not None
    assert "row 8 of the data, which went through in its batch, failed alone with ValueError: too short, or not" in said


class Leaky(nn.Module):
    """The mean over all steps, those of padding too, or over the row's own."""

    def __init__(self, *, leaks: bool) -> None:
        super().__init__()
        self.table, self.drop, self.leaks = nn.Embedding(50, 3), nn.Dropout(0.5), leaks

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        own = torch.ones_like(ids) if self.leaks else (ids > 0).long()
        hidden = self.drop(self.table(ids)) * own.unsqueeze(-1)
        return {"mean": hidden.sum(1) / own.sum(1, keepdim=True), "steps": hidden}


@pytest.mark.parametrize("draws", [None, 4])
@pytest.mark.parametrize("leaks", [True, False])
def test_a_model_whose_predictions_change_with_the_padding_is_told_of(
    tmp_path: Path, leaks: bool, draws: int | None
) -> None:
    torch.manual_seed(0)
    module = Leaky(leaks=leaks).eval()
    drawn: dict[str, Any] = {} if draws is None else {"mc_draws": draws}
    deploykit.export(
        module,
        tmp_path / "model",
        inputs=["ids:int64[batch,steps]"],
        ranges={"ids": (1, 49)},
        formats=["onnx"],
        **drawn,
    )
    rows = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10], [11, 12, 13]] * 5
    pq.write_table(pa.table({"ids": rows}), tmp_path / "rows.parquet")
    options: dict[str, Any] = {"pad": {"ids": 0}, "batch_size": 4, "writer": "parquet"}
    result = deploykit.run(tmp_path / "model", tmp_path / "rows.parquet", tmp_path / "run", **options)
    said = [note for note in result.notes if note.startswith("the padding shows: row 2 of the data has ")]
    assert len(said) == leaks
    assert ("the padding shows: row 2" in (tmp_path / "run" / "logs" / "rank-0.jsonl").read_text()) == leaks
    alone = deploykit.run(
        tmp_path / "model", tmp_path / "rows.parquet", tmp_path / "one", **options | {"batch_size": 1}
    )
    assert not any("padding shows" in note for note in alone.notes), "each row is as long as the longest of its batch"
    with deploykit.load(tmp_path / "model") as model:
        name = "mean" if draws is None else "mean.mean"
        padded = np.array([rows[2] + [0, 0]])
        of_batch = model.predict({"ids": padded}, sample_ids=[2])[name][0]
        own = model.predict({"ids": padded[:, :2]}, sample_ids=[2])[name][0]
    assert (np.abs(of_batch - own).max() > 1e-3) == leaks, "what the note says is so"
