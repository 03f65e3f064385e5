import io
import tracemalloc
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import MissingExtraError, RunError, UnknownNameError, UsageError
from deploykit.tensors import TensorSpec
from deploykit.writers import Batch, arrowdata, base, make_writer, npz, rebatch
from deploykit.writers.base import grouped, size_of

from .helpers import LABEL, MEAN, OUTPUTS, batch_of, make_job, run_all

BARE = TensorSpec(name="output", dtype="float32", shape=("batch", 3))
RAGGED = TensorSpec(name="tokens", dtype="float32", shape=("batch", "seq"))


def ragged(start: int, stop: int, width: int) -> Batch:
    ids = np.arange(start, stop, dtype=np.int64)
    return Batch(sample_ids=ids, outputs={"tokens": np.full((stop - start, width), start, np.float32)})


def equal(a: Batch, b: Batch) -> bool:
    return np.array_equal(a.sample_ids, b.sample_ids) and all(
        np.array_equal(a.outputs[n], b.outputs[n]) and a.outputs[n].dtype == b.outputs[n].dtype for n in a.outputs
    )


@given(st.lists(st.integers(0, 7), max_size=8), st.integers(1, 9))
def test_rebatch_keeps_rows_and_order(sizes: list[int], size: int) -> None:
    edges = np.cumsum([0, *sizes]).tolist()
    batches = list(rebatch([batch_of(a, b) for a, b in pairwise(edges)], size))
    assert [row for batch in batches for row in batch.sample_ids] == list(range(edges[-1]))
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(equal(b, batch_of(int(b.sample_ids[0]), int(b.sample_ids[-1]) + 1)) for b in batches)


def test_rebatch_cuts_where_shapes_change() -> None:
    batches = [ragged(0, 2, 3), ragged(2, 3, 3), ragged(3, 5, 1)]
    found = [batch.outputs["tokens"].shape for batch in rebatch(batches, 4)]
    assert found == [(3, 3), (1, 1), (1, 1)]


@given(st.integers(0, 40), st.sets(st.integers(0, 39)), st.lists(st.integers(1, 9), max_size=9), st.integers(1, 9))
def test_rebatch_gives_the_batches_of_the_plan_where_rows_are_left_out(
    rows: int, left_out: set[int], sizes: list[int], size: int
) -> None:
    """However a file cuts them: rows of two batches may differ in shape and must not be joined."""
    whole = batch_of(0, rows)
    kept = [row for row in range(rows) if row not in left_out]
    stored = Batch(sample_ids=np.array(kept, np.int64), outputs={n: a[kept] for n, a in whole.outputs.items()})
    edges = [0, *(edge for edge in np.cumsum(sizes).tolist() if edge < len(kept)), len(kept)]
    found = list(rebatch([stored[a:b] for a, b in pairwise(edges)], size))
    assert [batch.sample_ids.tolist() for batch in found] == [
        group for start in range(0, rows, size) if (group := [row for row in kept if start <= row < start + size])
    ]


@pytest.mark.parametrize("name", ["parquet", "arrow"])
def test_a_first_batch_without_rows_does_not_make_groups_of_one(tmp_path: Path, name: str) -> None:
    writer = make_writer(name, OUTPUTS)
    writer.write(tmp_path / "a", iter([batch_of(0, 0), batch_of(0, 50), batch_of(50, 50)]), 50)
    (batch,) = writer.read(tmp_path / "a")
    assert equal(batch, batch_of(0, 50))


def test_npy_is_a_plain_structured_array(tmp_path: Path) -> None:
    make_writer("npy", OUTPUTS).write(tmp_path / "a.npy", iter([batch_of(0, 4), batch_of(4, 5)]), 5)
    table = np.load(tmp_path / "a.npy", mmap_mode="r", allow_pickle=False)
    assert table.dtype == [("sample_id", "<i8"), ("logits.mean", "<f4", (3,)), ("label", "<i8")]
    np.testing.assert_array_equal(table["logits.mean"], batch_of(0, 5).outputs["logits.mean"])
    assert table["sample_id"].tolist() == [0, 1, 2, 3, 4]
    del table


def test_npy_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    batches = [ragged(0, 2, 3), ragged(2, 4, 5)]
    with pytest.raises(
        RunError, match=r"'tokens' has rows of shape \[5\] from row 2 on, and \[3\] before; .*jsonl or pt"
    ):
        make_writer("npy", [RAGGED]).write(tmp_path / "a", iter(batches), 4)
    with pytest.raises(UsageError, match=r"not ASCII.*--writer pt"):
        make_writer("npy", [TensorSpec(name="größe", dtype="float32", shape=("b",))])


def sized(rows: list[int], edges: list[int]) -> list[Batch]:
    """One batch for each two edges, of texts with so many characters and of 4 numbers, 24 bytes with the ids."""
    texts = np.array([*("x" * length for length in rows), None], object)[:-1]
    whole = Batch(sample_ids=np.arange(len(rows)), outputs={"note": texts, "y": np.zeros((len(rows), 4), np.int16)})
    return [whole[a:b] for a, b in pairwise(edges)]


@given(st.lists(st.integers(0, 300), max_size=20), st.lists(st.integers(0, 20), max_size=5), st.integers(1, 6))
def test_groups_take_what_fits_however_the_batches_fall(lengths: list[int], cuts: list[int], rows: int) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut <= len(lengths)), len(lengths)]
    found = list(grouped(sized(lengths, edges), rows, 400))
    wanted: list[list[int]] = []
    for row, length in enumerate(lengths):
        if not wanted or len(wanted[-1]) == rows or sum(24 + lengths[r] for r in wanted[-1]) + 24 + length > 400:
            wanted.append([])
        wanted[-1].append(row)
    assert [[row for batch in group for row in batch.sample_ids.tolist()] for group in found] == wanted
    assert sum(size_of(batch.outputs) for group in found for batch in group) == sum(16 + n for n in lengths)


def test_groups_of_any_size_measure_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_lengths", None)
    found = grouped(sized([300] * 7, [0, 2, 7]), 3)
    assert [[row for batch in group for row in batch.sample_ids.tolist()] for group in found] == [
        [0, 1, 2], [3, 4, 5], [6],
    ]  # fmt: skip


@given(st.integers(1, 500), st.integers(0, 99), st.integers(1, 60), st.integers(1, 9))
def test_groups_of_numbers_of_one_shape_are_equal(total: int, width: int, rows: int, size: int) -> None:
    whole = Batch(sample_ids=np.arange(total), outputs={"y": np.zeros((total, width), np.float32)})
    found = grouped([whole[start : start + size] for start in range(0, total, size)], rows, 1000)
    lengths = [sum(map(len, group)) for group in found]
    each = max(1, min(rows, 1000 // (8 + 4 * width)))
    assert lengths == [min(each, total - start) for start in range(0, total, each)]


@pytest.mark.parametrize("name", ["parquet", "arrow"])
def test_what_is_in_memory_at_a_time_follows_texts_and_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """And not what the first batch has of them."""
    monkeypatch.setattr(arrowdata, "GROUP_BYTES", 10_000)
    path, note = tmp_path / "a", TensorSpec(name="note", dtype="string", shape=("batch",))
    numbers = TensorSpec(name="y", dtype="int16", shape=("batch", 4))
    for specs, batches in [
        ([note, numbers], sized([1] * 10 + [2000] * 30, [0, 10, 40])),
        ([RAGGED], [ragged(0, 10, 1), ragged(10, 40, 500)]),
    ]:
        writer = make_writer(name, specs)
        writer.write(path, iter(batches), 40)
        assert max(size_of(batch.outputs) for batch in writer.read(path)) < 10_000
        assert [row for batch in writer.read(path) for row in batch.sample_ids] == list(range(40))


@pytest.mark.parametrize("shape", [("batch",), ("batch", 3), ("batch", "seq")])
def test_npy_refuses_columns_that_numpy_load_would_not_read(tmp_path: Path, shape: tuple[int | str, ...]) -> None:
    def columns(count: int) -> list[TensorSpec]:
        return [TensorSpec(name=f"customer_feature_{n:03d}", dtype="int64", shape=shape) for n in range(count)]

    most = max(count for count in range(100, 400) if _takes("npy", columns(count)))
    with pytest.raises(UsageError, match=r"takes 100\d\d bytes, .*use --writer npz or parquet"):
        make_writer("npy", columns(most + 1))
    outputs = columns(most + 1)  # A dynamic size has ten digits at most, and these have one.
    arrays = {spec.name: np.zeros((2, *[3] * (len(shape) - 1)), np.int64) for spec in outputs}
    batch = Batch(sample_ids=np.arange(2), outputs=arrays)
    for count in (most, most + 1):
        some = Batch(sample_ids=batch.sample_ids, outputs=dict(list(arrays.items())[:count]))
        make_writer("npy", outputs[:count], reads=True).write(tmp_path / f"{count}.npy", iter([some]), 2)
    assert len(np.load(tmp_path / f"{most}.npy").dtype) == most + 1
    if "seq" not in shape:
        with pytest.raises(ValueError, match="max_header_size"):
            np.load(tmp_path / f"{most + 1}.npy")
    # What a version that did not refuse it has written.
    (found,) = make_writer("npy", outputs, reads=True).read(tmp_path / f"{most + 1}.npy")
    assert equal(found, batch)


def _takes(name: str, outputs: list[TensorSpec]) -> bool:
    try:
        make_writer(name, outputs)
    except UsageError:
        return False
    return True


def test_pt_part_for_torch_users(tmp_path: Path) -> None:
    import torch

    make_writer("pt", OUTPUTS).write(tmp_path / "a.pt", iter([batch_of(0, 4), batch_of(4, 5)]), 5)
    part = torch.load(tmp_path / "a.pt", weights_only=True)
    assert list(part) == ["sample_id", "logits.mean", "label"]
    assert part["sample_id"].dtype == torch.int64
    assert part["logits.mean"].shape == (5, 3)
    assert part["logits.mean"][4].tolist() == [40, 41, 42]


def test_pt_keeps_batches_that_differ_in_shape(tmp_path: Path) -> None:
    import torch

    batches = [ragged(0, 2, 3), ragged(2, 4, 5), ragged(4, 5, 5)]
    writer = make_writer("pt", [RAGGED])
    writer.write(tmp_path / "a.pt", iter(batches), 5)
    assert [t.shape for t in torch.load(tmp_path / "a.pt", weights_only=True)["tokens"]] == [(2, 3), (2, 5), (1, 5)]
    assert all(map(equal, writer.read(tmp_path / "a.pt"), batches))


def test_pt_files_of_a_rank_are_what_lightning_users_know(tmp_path: Path) -> None:
    """predictions: one entry per batch; batch_indices: dataloader > batch > sample ids."""
    import torch

    job = make_job(rows=7, batch_size=2, shard_rows=2, writer="pt", write_interval="epoch", outputs=(BARE,))
    run_all(tmp_path, job, ranks=2)
    indices = [torch.load(tmp_path / f"batch_indices_{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert indices == [[[[0, 1], [4, 5]]], [[[2, 3], [6]]]]
    predictions = torch.load(tmp_path / "predictions_1.pt", weights_only=True)
    assert [type(p) for p in predictions] == [torch.Tensor, torch.Tensor]
    assert predictions[1].tolist() == [[60, 61, 62]]
    assert not list((tmp_path / "parts").iterdir())


def test_pt_files_of_a_rank_with_two_outputs(tmp_path: Path) -> None:
    import torch

    run_all(tmp_path, make_job(rows=5, writer="pt", write_interval="batch_and_epoch"), ranks=1)
    predictions = torch.load(tmp_path / "predictions_0.pt", weights_only=True)
    assert [list(p) for p in predictions] == [["logits.mean", "label"]] * 3
    assert predictions[2]["label"].tolist() == [40]


def test_pt_files_of_a_rank_with_one_named_output(tmp_path: Path) -> None:
    """A module that returns ``{"logits.mean": tensor}`` gives Lightning a dict, not a bare tensor."""
    import torch

    run_all(tmp_path, make_job(rows=3, writer="pt", write_interval="epoch", outputs=(MEAN,)), ranks=1)
    predictions = torch.load(tmp_path / "predictions_0.pt", weights_only=True)
    assert [list(p) for p in predictions] == [["logits.mean"]] * 2
    assert predictions[1]["logits.mean"].tolist() == [[20, 21, 22]]


def test_the_same_layout_as_lightnings_own_writer(tmp_path: Path) -> None:
    """The example of Lightning's documentation, run for real on one rank, next to ours."""
    lightning = pytest.importorskip("lightning")
    import torch
    from lightning.pytorch.callbacks import BasePredictionWriter

    class Theirs(BasePredictionWriter):  # type: ignore[misc]
        def write_on_epoch_end(self, trainer: Any, module: Any, predictions: Any, batch_indices: Any) -> None:
            torch.save(predictions, tmp_path / f"predictions_{trainer.global_rank}.pt")
            torch.save(batch_indices, tmp_path / f"batch_indices_{trainer.global_rank}.pt")

    class Model(lightning.LightningModule):  # type: ignore[misc]
        def predict_step(self, batch: Any, index: int) -> Any:
            return batch[0]

    rows = torch.from_numpy(batch_of(0, 7).outputs["logits.mean"])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows), batch_size=2)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = lightning.Trainer(accelerator="cpu", callbacks=[Theirs("epoch")], default_root_dir=tmp_path, **quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.predict(Model(), loader, return_predictions=False)
    run_all(tmp_path / "ours", make_job(7, 2, 4, writer="pt", write_interval="epoch", outputs=(BARE,)), ranks=1)
    for name in ("predictions_0.pt", "batch_indices_0.pt"):
        theirs = torch.load(tmp_path / name, weights_only=True)
        ours = torch.load(tmp_path / "ours" / name, weights_only=True)
        assert len(theirs) == len(ours)
        assert type(theirs) is type(ours)
        if name.startswith("batch"):
            assert theirs == ours
        else:
            assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))


CSV = """
import csv
from deploykit.writers import Writer
class CsvWriter(Writer):
    extension = "csv"
    def write(self, path, batches, rows):
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["sample_id", "label"])
            for batch in batches:
                table.writerows(zip(batch.sample_ids, batch.outputs["label"]))
class Dotted(CsvWriter):
    extension = ".csv"
class Unfinished(Writer):
    extension = "csv"
class NotOne:
    pass
class Unmade(CsvWriter):
    def __init__(self, outputs):
        super().__init__(outputs)
        self.label = {"a": 1}["b"]
class Greedy(CsvWriter):
    def __init__(self, outputs, more):
        pass
"""


def test_a_writer_of_ten_lines(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(CSV)
    name = f"{tmp_path / 'own.py'}:CsvWriter"
    run_all(tmp_path / "run", make_job(rows=5, writer=name))
    part = tmp_path / "run" / "parts" / "part-000001.csv"
    assert part.read_text().split() == ["sample_id,label", "4,40"]
    with pytest.raises(UsageError, match=r"no method read\(path\), which the write interval epoch needs"):
        make_writer(name, OUTPUTS, write_interval="epoch")
    for other, said in (
        ("Dotted", "without a dot"),
        ("Unfinished", "no method write"),
        ("NotOne", "not a class derived"),
        ("Unmade", rf"Unmade': making it raised KeyError: 'b' \({tmp_path}/own.py:\d+\); it is made with one argument"),
        ("Greedy", r"making it raised TypeError: .*'more'; it is made with one argument, the outputs"),
    ):
        with pytest.raises(UsageError, match=said):
            make_writer(name.replace("CsvWriter", other), OUTPUTS)


def test_unknown_writers_and_outputs_that_clash() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown writer 'excel': known are arrow, csv, jsonl, npy, npz, parquet, pt, zarr"
    ):
        make_writer("excel", OUTPUTS)
    for outputs in ((LABEL, LABEL), (TensorSpec(name="sample_id", dtype="int64", shape=("b",)),)):
        with pytest.raises(UsageError, match="rename the outputs"):
            make_writer("npy", outputs)


def test_pt_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(
        MissingExtraError, match=r"the writer 'pt' needs the package 'torch': pip install 'deploykit\[torch\]'"
    ):
        make_writer("pt", OUTPUTS)


@pytest.mark.parametrize("name", ["npy", "npz"])
def test_numpy_files_never_hold_more_than_a_batch(tmp_path: Path, name: str) -> None:
    outputs = (TensorSpec(name="y", dtype="float64", shape=("batch", 25_000)),)
    writer = make_writer(name, outputs)
    tracemalloc.start()
    writer.write(tmp_path / "a", (batch_of(i, i + 5, outputs) for i in range(0, 200, 5)), 200)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "a").stat().st_size > 40e6
    assert peak_bytes < 12e6


def test_npz_puts_no_block_over_another_after_one_was_read() -> None:
    aside = npz._Aside(io.BytesIO())
    places = [aside.put(b"first"), aside.put(b"second")]
    assert aside.get(*places[0]) == b"first"
    places.append(aside.put(b"third"))
    assert [aside.get(*each) for each in places] == [b"first", b"second", b"third"]


def test_npz_of_many_columns_holds_little_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "_BUFFER_BYTES", 2**20)
    outputs = tuple(TensorSpec(name=f"y{n}", dtype="float64", shape=("batch",)) for n in range(100))
    writer = make_writer("npz", outputs)
    tracemalloc.start()
    writer.write(tmp_path / "a.npz", (batch_of(i, i + 100, outputs) for i in range(0, 10_000, 100)), 10_000)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 3e6
    with np.load(tmp_path / "a.npz") as table:
        assert len(table) == 101
        np.testing.assert_array_equal(table["y99"], np.arange(10_000) * 10.0)
