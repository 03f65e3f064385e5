import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import DataError, IncompleteRunError, RunError, UsageError
from deploykit.runs.epoch import finish_epoch, is_finished
from deploykit.runs.merging import merge_run, merges_to
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.verify_run import check_run, verify_run
from deploykit.runs.watching import run_status
from deploykit.signs import signing
from deploykit.storage.files import sha256_of
from deploykit.tensors import TEXT, TensorSpec
from deploykit.writers import WRITERS, Batch, make_writer
from deploykit.writers.npy import NpyWriter

from .helpers import MEAN, batch_of, files_of, make_job, run_all, writer_of
from .test_writers import CSV, RAGGED, ragged


def load(path: Path) -> dict[str, Any]:
    if path.suffix == ".pt":
        import torch

        return {name: tensor.numpy() for name, tensor in torch.load(path, weights_only=True).items()}
    with np.load(path, allow_pickle=False) if path.suffix == ".npz" else open(path, "rb") as file:  # noqa: PTH123
        table = file if path.suffix == ".npz" else np.load(file)
        return {name: table[name] for name in (table.files if path.suffix == ".npz" else table.dtype.names)}


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(0, 19),
    size=st.integers(1, 4),
    extension=st.sampled_from(["npy", "npz", "pt"]),
    writer=st.sampled_from(["npy", "pt"]),
    interval=st.sampled_from(["batch", "epoch", "batch_and_epoch"]),
    ranks=st.integers(1, 3),
)
def test_merge_restores_the_order(
    tmp_path_factory: Any, rows: int, size: int, extension: str, writer: str, interval: str, ranks: int
) -> None:
    folder = tmp_path_factory.mktemp("m")
    run_all(folder / "run", make_job(rows, size, size * 2, writer=writer, write_interval=interval), ranks=ranks)
    merged = load(merge_run(folder / "run", folder / f"all.{extension}"))
    expected = batch_of(0, rows)
    assert sorted(merged) == ["label", "logits.mean", "sample_id"]
    np.testing.assert_array_equal(merged["sample_id"], expected.sample_ids, strict=True)
    for name, array in expected.outputs.items():
        np.testing.assert_array_equal(merged[name], array, strict=True)
    assert verify_run(folder / "run").ok


def test_merging_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    run_all(tmp_path / "run", make_job())
    for extension in ("npy", "npz", "pt"):
        digests = {sha256_of(merge_run(tmp_path / "run", tmp_path / f"{name}.{extension}")) for name in "ab"}
        assert len(digests) == 1


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    run_all(tmp_path / "run", make_job())
    path = tmp_path / "all.npz"
    path.write_text("precious")
    with pytest.raises(UsageError, match=r"all\.npz exists; replace it with --overwrite \(overwrite=True\)"):
        merge_run(tmp_path / "run", path)
    assert path.read_text() == "precious"
    merge_run(tmp_path / "run", path, overwrite=True)
    assert len(load(path)["label"]) == 20


def test_what_appears_during_a_merge_is_not_overwritten(tmp_path: Path) -> None:
    run_all(tmp_path / "run", make_job())
    path = tmp_path / "all.npz"
    with pytest.raises(UsageError, match=r"all\.npz exists; replace it with --overwrite \(overwrite=True\)"):
        merge_run(tmp_path / "run", path, progress=lambda *_: path.write_text("precious"))
    assert path.read_text() == "precious"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["all.npz", "run"]


@pytest.mark.parametrize("name", ["all.txt", "all", "none/all.npz", "dir.npz"])
def test_impossible_destinations(tmp_path: Path, name: str) -> None:
    run_all(tmp_path / "run", make_job())
    (tmp_path / "dir.npz").mkdir()
    with pytest.raises(UsageError, match=r"\.npy, \.npz, \.parquet, \.pt|existing directory"):
        merge_run(tmp_path / "run", tmp_path / name)


def test_the_merged_file_is_not_put_among_the_parts(tmp_path: Path) -> None:
    run_all(tmp_path / "run", make_job(writer="npy"))
    for folder in ("parts", "commits"):
        with pytest.raises(UsageError, match="finds each row twice; name a file elsewhere"):
            merge_run(tmp_path / "run", tmp_path / "run" / folder / "all.npy")
    merge_run(tmp_path / "run", tmp_path / "run" / "all.npy")


@pytest.mark.parametrize("folder", ["parts", "commits"])
@pytest.mark.parametrize("end", ["", "/"])
def test_nor_is_that_of_a_run_at_a_url(tmp_path: Path, folder: str, end: str) -> None:
    import fsspec

    run_all(tmp_path / "run", make_job(writer="npy"))
    store, url = fsspec.filesystem("memory"), f"memory://{tmp_path.name}"
    store.put(str(tmp_path / "run"), tmp_path.name, recursive=True)
    with pytest.raises(UsageError, match=rf"{folder}/all\.npy would lie among .* reads {url}/parts as one data set"):
        merge_run(f"{url}{end}", f"{url}/{folder}/all.npy")
    assert not store.exists(f"{tmp_path.name}/{folder}/all.npy")
    merge_run(f"{url}{end}", f"{url}/all.npy")
    assert store.exists(f"{tmp_path.name}/all.npy")


@pytest.mark.parametrize("name", ["predictions_1.npy", "failed.jsonl"])
@pytest.mark.parametrize("at_url", [False, True])
def test_nor_does_it_replace_a_file_of_the_run(tmp_path: Path, at_url: bool, name: str) -> None:
    import fsspec

    run: Path | str = tmp_path / "run"
    run_all(tmp_path / "run", make_job(write_interval="epoch"), ranks=2)
    if at_url:
        run = f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").put(str(tmp_path / "run"), tmp_path.name, recursive=True)
    with pytest.raises(UsageError, match=rf"{name} is the name of a file that the run itself writes; name another"):
        merge_run(run, f"{run}/{name}", overwrite=True)
    assert verify_run(tmp_path / "run").ok
    (tmp_path / "beside").mkdir()
    merge_run(run, tmp_path / "beside" / name)


def test_the_file_of_a_rank_is_read_once_for_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_all(tmp_path / "run", make_job(write_interval="epoch"), ranks=2)
    reads: list[int] = []
    read = NpyWriter.read_epoch

    def counted(self: NpyWriter, directory: Path, rank: int) -> Iterator[Batch]:
        reads.append(rank)
        return read(self, directory, rank)

    monkeypatch.setattr(NpyWriter, "read_epoch", counted)
    merge_run(tmp_path / "run", tmp_path / "all.npz")
    assert sorted(reads) == [0, 1]


def test_an_incomplete_run_is_merged_only_on_request(tmp_path: Path) -> None:
    run_all(tmp_path / "run", make_job())
    (tmp_path / "run/parts/part-000001.npy").write_text("")
    (tmp_path / "run/commits/part-000003.json").unlink()
    with pytest.raises(
        IncompleteRunError, match=r"lacks rows 4 to 7, rows 12 to 15 \(parts.* 0 bytes.*--allow-partial \(allow"
    ):
        merge_run(tmp_path / "run", tmp_path / "all.npz")
    assert not (tmp_path / "all.npz").exists()
    told: list[str] = []
    merged = load(merge_run(tmp_path / "run", tmp_path / "all.npz", allow_partial=True, told=told.append))
    assert [text.partition("; to resume")[0] for text in told] == [
        "8 rows missing, not in the file: rows 4 to 7, rows 12 to 15"
    ]
    assert merged["sample_id"].tolist() == [*range(4), *range(8, 12), *range(16, 20)]
    assert merged["label"].tolist() == [10 * row for row in merged["sample_id"]]


def test_a_failed_merge_leaves_nothing(tmp_path: Path) -> None:
    job = make_job(rows=4, shard_rows=2, writer="pt", outputs=(RAGGED,))
    directory = RunDirectory.prepare(tmp_path / "run", job)
    for shard in job.plan.shards():
        batches = [ragged(shard.start, shard.stop, 3 + shard.index)]
        directory.write_part(shard, writer_of(job), batches, rank=0, timings={})
    for extension in ("npy", "npz"):
        with pytest.raises(RunError, match=r"'tokens' has rows of shape \[4\] from row 2 on, and \[3\] before.*pt"):
            merge_run(tmp_path / "run", tmp_path / f"all.{extension}")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    import torch

    table = torch.load(merge_run(tmp_path / "run", tmp_path / "all.pt"), weights_only=True)
    assert [t.shape for t in table["tokens"]] == [(2, 3), (2, 4)]


def test_a_writer_without_read_runs_but_does_not_merge(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(CSV)
    run_all(tmp_path / "run", make_job(writer=f"{tmp_path / 'own.py'}:CsvWriter"))
    with pytest.raises(RunError, match=r"no method read\(path\), so its files cannot be merged"):
        merge_run(tmp_path / "run", tmp_path / "all.npz")
    check = verify_run(tmp_path / "run")
    assert "were not read" in check.notes[0]
    assert not check.are_ids_read


OWN = """
import numpy as np
from deploykit.writers import Batch, Writer
class Ids(Writer):
    extension = "ids"
    def write(self, path, batches, rows):
        path.write_text(" ".join(str(row) for batch in batches for row in batch.sample_ids))
    def read(self, path):
        ids = np.array(path.read_text().split(), np.int64)
        yield Batch(sample_ids=ids, outputs={"label": ids * 10, "logits.mean": np.zeros((len(ids), 3), np.float32)})
"""


def test_a_writer_outside_of_the_table_merges_into_its_own_format(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    run_all(tmp_path / "run", make_job(rows=5, writer=f"{tmp_path / 'own.py'}:Ids", write_interval="epoch"))
    assert merge_run(tmp_path / "run", tmp_path / "all.ids").read_text() == "0 1 2 3 4"
    assert load(merge_run(tmp_path / "run", tmp_path / "all.npz"))["label"].tolist() == [0, 10, 20, 30, 40]


@pytest.mark.parametrize(
    ("as_written", "as_given", "said"),
    [
        (
            '"label": ids * 10, ',
            "",
            r"other columns .* got \['logits.mean'\], without \['label'\]; mend its method read",
        ),
        ("ids * 10", "ids * 1.5", r"output 'label' is float64\[4\] for 4 rows, .* promises label:int64"),
        (
            "np.int64)",
            "np.int64)[:3]",
            "gave 3 rows, and 4 were written; from place 3 on its sample ids are none where 3",
        ),
        ("np.int64)", "np.int64)[::-1]", "from place 0 on its sample ids are 3, 2, 1, 0 where 0, 1, 2, 3 was written"),
    ],
)
def test_a_read_that_does_not_give_what_was_written_is_told_with_the_first_part(
    tmp_path: Path, as_written: str, as_given: str, said: str
) -> None:
    (tmp_path / "own.py").write_text(OWN.replace(as_written, as_given))
    with pytest.raises(RunError, match=f"^writer Ids: reading part-000000.ids.*{said}"):
        run_all(tmp_path / "run", make_job(rows=5, writer=f"{tmp_path / 'own.py'}:Ids"))
    assert list(files_of(tmp_path / "run")) == ["run.json"], "nothing counts, and nothing half-written is left"


def test_a_read_that_was_spoiled_after_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(OWN)
    directory = run_all(tmp_path / "run", make_job(rows=5, writer=f"{tmp_path / 'own.py'}:Ids"))
    kind = type(directory.writer())
    read = kind.read
    monkeypatch.setattr(
        kind, "read", lambda self, path: (Batch(sample_ids=batch.sample_ids, outputs={}) for batch in read(self, path))
    )
    for broken in (lambda: merge_run(tmp_path / "run", tmp_path / "all.npz"), lambda: verify_run(tmp_path / "run")):
        with pytest.raises(
            RunError, match=r"^writer Ids: reading parts/part-000000.ids .* without \['logits.mean', 'label'\]"
        ):
            broken()


REUSING = """
import numpy as np
from deploykit.writers import Batch, Writer
class Ids(Writer):
    extension = "ids"
    def write(self, path, batches, rows):
        path.write_text(" ".join(str(row) for batch in batches for row in batch.outputs["label"] // 10))
    def read(self, path):
        ids, label, mean = np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros((1, 3), np.float32)
        for ids[0] in map(int, path.read_text().split()):
            label[0] = ids[0] * 10
            yield Batch(sample_ids=ids, outputs={"label": label, "logits.mean": mean})
"""


@pytest.mark.parametrize("layout", ["contiguous", "strided:2"])
def test_a_writer_that_reads_into_the_same_memory_again(tmp_path: Path, layout: str) -> None:
    (tmp_path / "own.py").write_text(REUSING)
    job = make_job(rows=5, writer=f"{tmp_path / 'own.py'}:Ids", write_interval="epoch", layout=layout)
    run_all(tmp_path / "run", job)
    assert load(merge_run(tmp_path / "run", tmp_path / "all.npz"))["label"].tolist() == [0, 10, 20, 30, 40]


def test_sample_ids_may_be_integers_of_another_type_and_nothing_else(tmp_path: Path) -> None:
    for dtype in ("int32", "float64"):
        (tmp_path / f"{dtype}.py").write_text(OWN.replace("sample_ids=ids", f"sample_ids=ids.astype(np.{dtype})"))
        job = make_job(rows=5, writer=f"{tmp_path / dtype}.py:Ids")
        if dtype == "int32":
            run_all(tmp_path / dtype, job)
    merged = load(merge_run(tmp_path / "int32", tmp_path / "all.npz"))
    assert merged["sample_id"].dtype == np.int64
    assert merged["sample_id"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(RunError, match="sample ids of float64; a batch has them in int64"):
        run_all(tmp_path / "float64", job)


def test_a_broken_plug_in_breaks_no_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WRITERS._table, "broken", "no_such_module:Writer")
    run_all(tmp_path / "run", make_job(rows=5))
    assert len(load(merge_run(tmp_path / "run", tmp_path / "all.npz"))["label"]) == 5


@pytest.mark.parametrize("writer", ["parquet", "arrow", "jsonl", "pt"])
@pytest.mark.parametrize("interval", ["batch", "epoch"])
def test_rows_of_different_shapes_through_a_whole_run(tmp_path: Path, writer: str, interval: str) -> None:
    job = make_job(rows=11, batch_size=2, shard_rows=4, writer=writer, write_interval=interval, outputs=(RAGGED,))
    directory = RunDirectory.prepare(tmp_path / "run", job)
    for shard in job.plan.shards():
        batches = [ragged(start, stop, 1 + start % 3) for start, stop in job.plan.batches(shard)]
        directory.write_part(shard, writer_of(job), batches, rank=shard.index % 2, timings={})
    if interval == "epoch":
        finish_epoch(directory, writer_of(job))
    assert verify_run(tmp_path / "run").ok
    lines = merge_run(tmp_path / "run", tmp_path / "all.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"sample_id": row, "tokens": [row - row % 2] * (1 + (row - row % 2) % 3)} for row in range(11)
    ]


class TestVerify:
    def test_a_good_run(self, tmp_path: Path) -> None:
        for interval in ("batch", "epoch", "batch_and_epoch"):
            run_all(tmp_path / interval, make_job(write_interval=interval))
            check = verify_run(tmp_path / interval)
            assert (check.rows, check.committed_rows, check.problems(), check.notes) == (20, 20, [], ())

    def test_not_a_run(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"holds no run\.json"):
            verify_run(tmp_path)

    def test_missing_and_damaged_are_listed(self, tmp_path: Path) -> None:
        run_all(tmp_path, make_job())
        path = tmp_path / "parts/part-000002.npy"
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        (tmp_path / "commits/part-000004.json").unlink()
        before = files_of(tmp_path)
        check = check_run(tmp_path)
        assert check.missing == ((8, 12), (16, 20))
        assert check.committed_rows == 12
        said = r"12 of 20 rows are there; missing: rows 8 to 11, rows 16 to 19; damaged: parts/part-000002.npy: SHA-256"
        with pytest.raises(IncompleteRunError, match=rf"{said}.*; to resume it, give its deploykit run command again"):
            verify_run(tmp_path)
        assert files_of(tmp_path) == before

    def test_rows_in_two_rank_files(self, tmp_path: Path) -> None:
        directory = run_all(tmp_path, make_job(write_interval="epoch"))
        data = (tmp_path / "predictions_1.npy").read_bytes()
        (tmp_path / "predictions_2.npy").write_bytes(data)
        commit = json.loads((directory.commits / "rank-0001.json").read_text())
        commit["files"][0]["file"] = "predictions_2.npy"
        (directory.commits / "rank-0002.json").write_text(json.dumps({**commit, "rank": 2}))
        with pytest.raises(RunError, match=r"more than once: rows 4 to 7, rows 12 to 15; to resume it, give"):
            verify_run(tmp_path)
        assert not is_finished(directory)
        finish_epoch(directory, writer_of(directory.job))
        assert verify_run(tmp_path).ok

    @pytest.mark.parametrize(("interval", "file"), [("batch", "parts/part-000001.npy"), ("epoch", "predictions_1.npy")])
    def test_a_damaged_file_is_not_looked_into(self, tmp_path: Path, interval: str, file: str) -> None:
        """What it holds counts no more, so nothing but the damage is said of it."""
        run_all(tmp_path, make_job(write_interval=interval))
        table = np.load(tmp_path / file)
        table["sample_id"][0] = 99
        np.save(tmp_path / file, table)
        (damage,) = check_run(tmp_path).damaged
        assert damage.startswith(f"{file}: SHA-256")

    @pytest.mark.parametrize("interval", ["batch", "epoch"])
    @pytest.mark.parametrize("writer", ["npy", "pt"])
    def test_ids_are_read_not_believed(self, tmp_path: Path, interval: str, writer: str) -> None:
        """A file whose digest holds, with another row in it."""
        directory = run_all(tmp_path, make_job(write_interval=interval, writer=writer), ranks=1)
        rows = [batch_of(0, 2), batch_of(3, 4), batch_of(3, 20 if interval == "epoch" else 4)]
        kind = writer_of(directory.job)
        if interval == "epoch":
            files = kind.write_epoch(tmp_path, 0, iter(rows), 20)
            path = directory.commits / "rank-0000.json"
            commit = json.loads(path.read_text())
            for file, record in zip(files, commit["files"], strict=True):
                record.update(sha256=sha256_of(file), size_bytes=file.stat().st_size)
        else:
            file = directory.parts / f"part-000000.{writer}"
            kind.write(file, iter(rows), 4)
            path = directory.commits / "part-000000.json"
            commit = json.loads(path.read_text())
            commit.update(sha256=sha256_of(file), size_bytes=file.stat().st_size)
        path.write_text(json.dumps(commit))
        with pytest.raises(RunError, match=r"place 2 holds the sample id 3, not its own.*into a new directory"):
            verify_run(tmp_path)
        with pytest.raises(RunError, match="expected the sample ids from"):
            merge_run(tmp_path, tmp_path / "all.npz")
        assert not (tmp_path / "all.npz").exists()

    def test_files_with_too_few_or_too_many_rows(self, tmp_path: Path) -> None:
        for rows, said in ((3, "3 rows, its commit says 4"), (5, "more rows than the 4 of its commit")):
            directory = run_all(tmp_path / str(rows), make_job(outputs=(MEAN,)))
            file = directory.parts / "part-000000.npy"
            writer_of(directory.job).write(file, iter([batch_of(0, rows, (MEAN,))]), rows)
            path = directory.commits / "part-000000.json"
            commit = json.loads(path.read_text())
            path.write_text(json.dumps({**commit, "sha256": sha256_of(file), "size_bytes": file.stat().st_size}))
            with pytest.raises(RunError, match=said):
                verify_run(directory.path)

    def test_a_run_that_stopped_before_its_last_step(self, tmp_path: Path) -> None:
        job = make_job(write_interval="epoch")
        directory = RunDirectory.prepare(tmp_path, job)
        for shard in job.plan.shards():
            rows = [batch_of(shard.start, shard.stop)]
            directory.write_part(shard, writer_of(job), rows, rank=0, timings={})
        assert not is_finished(directory)
        with pytest.raises(
            IncompleteRunError, match="20 of 20 rows are there; the files of the ranks are not written yet"
        ):
            verify_run(tmp_path)
        assert load(merge_run(tmp_path, tmp_path / "all.npy"))["label"].tolist() == list(range(0, 200, 10))


def test_zero_rows_with_dynamic_outputs(tmp_path: Path) -> None:
    spec = TensorSpec(name="y", dtype="float32", shape=("batch", "seq", 3))
    run_all(tmp_path / "run", make_job(rows=0, outputs=(spec,)))
    for extension in ("npy", "npz", "pt"):
        assert load(merge_run(tmp_path / "run", tmp_path / f"all.{extension}"))["y"].shape == (0, 0, 3)
    assert isinstance(batch_of(0, 0), Batch)


@pytest.mark.parametrize("extension", ["arrow", "csv", "jsonl", "npy", "npz", "parquet", "pt", "zarr.zip"])
def test_a_merge_for_which_there_is_no_room(tmp_path: Path, extension: str) -> None:
    run_all(tmp_path / "run", make_job(rows=4000, batch_size=100, shard_rows=1000))
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, former[1]))
    try:
        with pytest.raises(RunError, match=r"cannot write .*File too large|cannot write .*errno 27") as e:
            merge_run(tmp_path / "run", tmp_path / f"merged.{extension}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert str(e.value).endswith("give the same command again"), "nothing of it is resumed"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_merge_through_a_link_writes_where_it_leads(tmp_path: Path) -> None:
    run_all(tmp_path / "run", make_job())
    (tmp_path / "disk").mkdir()
    link = tmp_path / "merged.npy"
    link.symlink_to(tmp_path / "disk" / "merged.npy")
    assert merge_run(tmp_path / "run", link) == link
    with pytest.raises(UsageError, match="exists; replace it with --overwrite"):
        merge_run(tmp_path / "run", link)
    (tmp_path / "disk" / "merged.npy").write_text("old")
    merge_run(tmp_path / "run", link, overwrite=True)
    assert link.is_symlink()
    assert len(np.load(tmp_path / "disk" / "merged.npy")) == 20
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["merged.npy"]


@pytest.mark.parametrize("interval", ["batch", "epoch", "batch_and_epoch"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_who_looks_on_is_told_of_every_row(tmp_path: Path, interval: str, ranks: int) -> None:
    run_all(tmp_path / "run", make_job(write_interval=interval), ranks=ranks)
    verified: list[tuple[int, int]] = []
    merged: list[tuple[int, int]] = []
    verify_run(tmp_path / "run", progress=lambda done, total: verified.append((done, total)))
    merge_run(tmp_path / "run", tmp_path / "all.npz", progress=lambda done, total: merged.append((done, total)))
    for calls in (verified, merged):
        assert {total for _, total in calls} == {20}
        assert calls == sorted(calls)
        assert calls[-1] == (20, 20)
        assert len(set(calls)) > 1


@pytest.mark.parametrize(
    ("writer", "outputs", "extension"),
    [
        ("npy", (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),), "npz"),
        ("zarr", (TensorSpec(name="x", dtype="float32", shape=("batch", "steps")),), "jsonl"),
        ("csv", (TensorSpec(name="id", dtype=TEXT, shape=("batch",)),), "jsonl"),
        ("parquet", (RAGGED,), "parquet"),
        ("pt", (RAGGED,), "pt"),
    ],
)
def test_a_file_that_can_be_merged_to_is_named(writer: str, outputs: tuple[TensorSpec, ...], extension: str) -> None:
    assert merges_to(make_writer(writer, outputs)) == extension


def test_to_no_file_is_merged_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(CSV)
    assert merges_to(writer_of(make_job(writer=f"{tmp_path / 'own.py'}:CsvWriter"))) is None


@pytest.mark.parametrize("use", [verify_run, lambda run: merge_run(run, run.parent / "all.npz")])
def test_a_run_whose_writer_is_not_here_is_named_with_it(tmp_path: Path, use: Callable[[Path], object]) -> None:
    """As on a machine where the plug-in is not installed."""
    run_all(tmp_path / "run", make_job())
    job = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(job | {"writer": "txt"}))
    with pytest.raises(RunError, match=r"directory .*run: only the writer 'txt' reads .*known are .*; install the"):
        use(tmp_path / "run")


@pytest.mark.parametrize("interval", ["batch", "epoch", "batch_and_epoch"])
def test_what_lies_among_the_commits_and_is_none_is_told(tmp_path: Path, interval: str) -> None:
    job = make_job(write_interval=interval)
    directory = run_all(tmp_path, job)
    whole = files_of(tmp_path)
    for name in ("notes.txt", "part-000099.json", "strided-0000.json"):
        (tmp_path / "commits" / name).write_text("{}")
    check = verify_run(tmp_path)
    assert check.ok
    assert check.notes[0] == "commits/notes.txt: is none of this run's, and nothing goes by it; remove it"
    assert [note.partition(":")[0] for note in check.notes[1:]] == [
        "commits/part-000099.json", "commits/strided-0000.json",
    ]  # fmt: skip
    (tmp_path / "commits" / "rank-9999.json").write_text("{}")
    if interval == "batch":
        assert "commits/rank-9999.json: is none of this run's" in " ".join(verify_run(tmp_path).notes)
        assert is_finished(directory)
        return
    with pytest.raises(IncompleteRunError, match=r"20 of 20 .*damaged: rank-9999\.json: .*; to resume it, give"):
        verify_run(tmp_path)
    assert not is_finished(directory)
    run_all(tmp_path, job)
    assert verify_run(tmp_path).ok
    assert {name: data for name, data in files_of(tmp_path).items() if name in whole} == whole


@pytest.mark.parametrize("use", [verify_run, run_status, lambda run: merge_run(run, run.with_suffix(".npz"))])
def test_a_disk_that_fails_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], object]
) -> None:
    path = run_all(tmp_path / "run", make_job()).path

    def failing(_: object) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path / "commits"))

    monkeypatch.setattr(os, "listdir", failing)
    said = r"run directory .*run: cannot be looked at \(.*commits: Permission denied\); check its disk and who may read"
    with pytest.raises(RunError, match=said):
        use(path)


def test_a_part_that_the_disk_does_not_give_is_a_message_and_another_file_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_all(tmp_path / "run", make_job()).path
    error = OSError(errno.EIO, os.strerror(errno.EIO))

    def failing(*_: object) -> str:
        raise error

    monkeypatch.setattr("deploykit.runs.commit.sha256_of", failing)
    with pytest.raises(RunError, match=r"cannot be looked at \(Input/output error\)"):
        verify_run(path)
    error = OSError(errno.ENOENT, os.strerror(errno.ENOENT), "/elsewhere")
    with pytest.raises(FileNotFoundError, match="/elsewhere"):
        verify_run(path)


DERIVED = """
from deploykit.writers import Batch, Writer
from deploykit.writers.npy import NpyWriter
class Fewer(NpyWriter):
    def write(self, path, batches, rows):
        outputs = self.outputs
        self.outputs = tuple(spec for spec in outputs if spec.name != "label")
        try:
            wanted = ["logits.mean"]
            fewer = (Batch(sample_ids=b.sample_ids, outputs={n: b.outputs[n] for n in wanted}) for b in batches)
            super().write(path, fewer, rows)
        finally:
            self.outputs = outputs
class Unread(Fewer):
    read = Writer.read
"""


def test_a_subclass_of_a_writer_that_cannot_read_its_own_files_says_so(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(DERIVED)
    with pytest.raises(RunError, match=r"^writer Fewer: reading part-000000.npy .*; or say that it has none"):
        run_all(tmp_path / "run", make_job(rows=5, writer=f"{tmp_path / 'own.py'}:Fewer"))
    run_all(tmp_path / "unread", make_job(rows=5, writer=f"{tmp_path / 'own.py'}:Unread"))
    assert not verify_run(tmp_path / "unread").are_ids_read


def test_what_the_last_call_has_failed_with_is_said_with_the_rows_that_are_missing(tmp_path: Path) -> None:
    directory = RunDirectory.prepare(tmp_path / "run", make_job(command="deploykit run model"))
    with pytest.raises(DataError), signing(directory.path):
        raise DataError("row 3: NaN")
    said = r"to resume it: deploykit run model\. The last call ended with: row 3: NaN"
    for look in (verify_run, lambda run: merge_run(run, tmp_path / "all.npz")):
        with pytest.raises(IncompleteRunError, match=said):
            look(directory.path)
    with signing(directory.path):
        pass
    assert "ended with" not in check_run(directory.path).to_resume


def test_a_file_that_cannot_hold_the_rows_is_refused_with_the_name_of_one_that_can(tmp_path: Path) -> None:
    run_all(tmp_path / "run", make_job(outputs=(RAGGED,), writer="jsonl"))
    with pytest.raises(UsageError, match=r"the same columns in every row; name a file that ends in \.jsonl$") as caught:
        merge_run(tmp_path / "run", tmp_path / "all.csv")
    assert "--writer" not in str(caught.value)
