"""The layout of Lightning's ranks: which rows, in which files, and what verify, merge and a resume make of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import IncompleteRunError, RunError, UsageError
from deploykit.runs.epoch import finish_epoch, is_finished
from deploykit.runs.layout import Layout, parse_layout
from deploykit.runs.merging import merge_run
from deploykit.runs.rankrows import rank_batches
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.verify_run import verify_run
from deploykit.storage.files import sha256_of
from deploykit.tensors import TensorSpec

from .helpers import batch_of, files_of, make_job, run_all, writer_of
from .test_writers import RAGGED, ragged

BARE = TensorSpec(name="output", dtype="float32", shape=("batch", 3))
SIZES = {"rows": st.integers(0, 40), "batch_size": st.integers(1, 5), "ranks": st.integers(1, 5)}


@given(**SIZES)
def test_strided_is_lightnings_own_sampler(rows: int, batch_size: int, ranks: int) -> None:
    """The oracle is torch's and Lightning's code; it cannot make a rank without rows, so those are left out."""
    from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
    from torch.utils.data import BatchSampler

    layout = Layout(kind="strided", ranks=ranks)
    for rank in range(min(rows, ranks)):
        sampler = UnrepeatedDistributedSampler(range(rows), num_replicas=ranks, rank=rank, shuffle=False)
        want = list(BatchSampler(sampler, batch_size, drop_last=False))
        assert [list(batch) for batch in layout.batches(rank, rows, batch_size)] == want
    for rank in range(rows, ranks):
        assert list(layout.batches(rank, rows, batch_size)) == []


@given(**SIZES)
def test_contiguous_blocks_hold_each_row_once_in_whole_batches(rows: int, batch_size: int, ranks: int) -> None:
    layout = Layout(kind="contiguous", ranks=ranks)
    batches = [list(batch) for rank in range(ranks) for batch in layout.batches(rank, rows, batch_size)]
    assert batches == [list(range(rows))[at : at + batch_size] for at in range(0, rows, batch_size)]
    shares = [len(list(layout.batches(rank, rows, batch_size))) for rank in range(ranks)]
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("number", ["65537", "99999999999", "9" * 5000])
def test_more_ranks_than_anybody_has_are_refused(number: str) -> None:
    with pytest.raises(UsageError, match=r"layout 'strided:\d+'?.* at most 65536 are allowed"):
        parse_layout(f"strided:{number}", 1)
    assert parse_layout("strided:65536", 1).ranks == 65536


@pytest.mark.parametrize("text", ["", "zigzag", "strided:", "strided:0", "strided:-1", "strided:two"])
def test_other_layouts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"known are contiguous and strided.*strided:4"):
        parse_layout(text, 1)


@given(
    loaders=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    batch_size=st.integers(1, 4),
    shard_batches=st.integers(1, 3),
    ranks=st.integers(1, 4),
    kind=st.sampled_from(["contiguous", "strided"]),
)
def test_batches_of_ranks_from_parts(
    tmp_path_factory: Any, loaders: list[int], batch_size: int, shard_batches: int, ranks: int, kind: str
) -> None:
    """The layout starts anew with each dataloader, and a batch never holds rows of two."""
    job = make_job(sum(loaders), batch_size, batch_size * shard_batches)
    directory = run_all(tmp_path_factory.mktemp("r"), job)
    layout = Layout(kind=kind, ranks=ranks)
    for rank in range(ranks):
        got = list(rank_batches(directory, writer_of(job), layout, rank, loaders))
        firsts = np.cumsum([0, *loaders])
        want = [
            (loader, number, [int(firsts[loader]) + row for row in batch])
            for loader, rows in enumerate(loaders)
            for number, batch in enumerate(layout.batches(rank, rows, batch_size))
        ]
        assert [(loader, number, batch.sample_ids.tolist()) for loader, number, batch in got] == want
        for _, _, batch in got:
            assert batch.outputs["label"].tolist() == [10 * row for row in batch.sample_ids]


@pytest.mark.parametrize("writer", ["npy", "pt"])
@pytest.mark.parametrize("interval", ["epoch", "batch_and_epoch"])
@pytest.mark.parametrize(("rows", "ranks"), [(0, 2), (1, 2), (7, 2), (20, 3), (4, 1)])
def test_files_of_strided_ranks(tmp_path: Path, writer: str, interval: str, rows: int, ranks: int) -> None:
    job = make_job(rows, writer=writer, write_interval=interval, layout=f"strided:{ranks}")
    directory = run_all(tmp_path / "run", job, ranks=2)
    assert is_finished(directory)
    assert verify_run(directory.path).ok
    kind = writer_of(job)
    for rank in range(ranks if rows else 0):
        found = [row for batch in kind.read_epoch(directory.path, rank) for row in batch.sample_ids.tolist()]
        assert found == list(range(rank, rows, ranks))
    assert len(list(directory.path.glob("predictions_*"))) == (ranks if rows else 0)
    merged = np.load(merge_run(directory.path, tmp_path / "all.npy"))
    assert merged["sample_id"].tolist() == list(range(rows))
    assert merged["label"].tolist() == [10 * row for row in range(rows)]


def test_the_nesting_that_lightning_users_know(tmp_path: Path) -> None:
    import torch

    job = make_job(7, 2, 4, writer="pt", write_interval="epoch", layout="strided:2", outputs=(BARE,))
    run_all(tmp_path, job, ranks=1)
    indices = [torch.load(tmp_path / f"batch_indices_{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert indices == [[[[0, 2], [4, 6]]], [[[1, 3], [5]]]]
    predictions = torch.load(tmp_path / "predictions_1.pt", weights_only=True)
    assert [prediction.shape for prediction in predictions] == [(2, 3), (1, 3)]
    assert predictions[1].tolist() == [[50, 51, 52]]


def test_rows_of_different_shapes_that_meet_in_a_batch_are_refused(tmp_path: Path) -> None:
    job = make_job(8, 2, 4, writer="pt", write_interval="epoch", layout="strided:2", outputs=(RAGGED,))
    for widths, said in (([3, 3, 4, 4], None), ([3, 4, 4, 4], r"\[3\] and \[4\] meet in one batch .*--layout contig")):
        path = tmp_path / str(said is None)
        directory = RunDirectory.prepare(path, job)
        for shard in job.plan.shards():
            batches = [ragged(start, stop, widths[start // 2]) for start, stop in job.plan.batches(shard)]
            directory.write_part(shard, writer_of(job), batches, rank=0, timings={})
        if said is None:
            finish_epoch(directory, writer_of(job))
            assert verify_run(path).ok
            continue
        with pytest.raises(RunError, match=said):
            finish_epoch(directory, writer_of(job))
        assert not list(path.glob("predictions_*"))


def test_one_row_on_two_ranks(tmp_path: Path) -> None:
    """Lightning's sampler raises an AssertionError there; here the second rank has nothing, and files that say so."""
    import torch

    job = make_job(1, 2, 2, writer="pt", write_interval="epoch", layout="strided:2", outputs=(BARE,))
    run_all(tmp_path, job)
    assert torch.load(tmp_path / "predictions_1.pt", weights_only=True) == []
    assert torch.load(tmp_path / "batch_indices_1.pt", weights_only=True) == [[]]


def test_what_is_damaged_is_written_again_from_the_parts(tmp_path: Path) -> None:
    job = make_job(9, writer="npy", write_interval="epoch", layout="strided:2")
    directory = run_all(tmp_path, job)
    whole = {name: data for name, data in files_of(tmp_path).items() if name.startswith("predictions")}
    damaged = tmp_path / "predictions_1.npy"
    for damage in (lambda: damaged.write_bytes(whole[damaged.name][:-1] + b"?"), damaged.unlink):
        damage()
        assert not is_finished(RunDirectory.open(tmp_path))
        with pytest.raises(IncompleteRunError, match=r"predictions_1\.npy.*to resume it, give its deploykit run"):
            verify_run(tmp_path)
        run_all(tmp_path, job)
        assert {name: (tmp_path / name).read_bytes() for name in whole} == whole
        assert verify_run(tmp_path).ok
    (directory.commits / "strided-0000.json").unlink()
    with pytest.raises(IncompleteRunError, match="the files of rank 0 are not written yet"):
        verify_run(tmp_path)


def test_a_run_that_has_lost_a_part_is_not_finished_for_its_strided_files(tmp_path: Path) -> None:
    job = make_job(9, write_interval="epoch", layout="strided:2")
    directory = run_all(tmp_path, job)
    whole = files_of(tmp_path)
    (directory.parts / "part-000001.npy").unlink()
    assert not is_finished(directory)
    with pytest.raises(IncompleteRunError, match="missing: rows 4 to 7"):
        verify_run(tmp_path)
    run_all(tmp_path, job)
    assert is_finished(directory)
    assert files_of(tmp_path) == whole


def test_ids_in_strided_files_are_read_not_believed(tmp_path: Path) -> None:
    job = make_job(9, write_interval="epoch", layout="strided:2")
    directory = run_all(tmp_path, job)
    (file,) = writer_of(job).write_epoch(tmp_path, 1, iter([batch_of(0, 4)]), 4)
    path = directory.commits / "strided-0001.json"
    commit = json.loads(path.read_text())
    commit["files"][0].update(sha256=sha256_of(file), size_bytes=file.stat().st_size)
    path.write_text(json.dumps(commit))
    with pytest.raises(RunError, match=r"predictions_1\.npy: from place 0 on it holds other rows than those of rank 1"):
        verify_run(tmp_path)


@pytest.mark.parametrize("some", [1, 2, 3, 100])
def test_ids_are_made_some_at_a_time(tmp_path: Path, some: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploykit.runs.strided._IDS", some)
    run_all(tmp_path, make_job(19, write_interval="epoch", layout="strided:2"))
    assert verify_run(tmp_path).committed_rows == 19


def test_the_layout_is_part_of_the_job(tmp_path: Path) -> None:
    run_all(tmp_path, make_job(9, write_interval="epoch", layout="strided:2"))
    for other in ("strided:4", "contiguous"):
        with pytest.raises(RunError, match=f"layout: 'strided:2', asked for '{other}'"):
            RunDirectory.prepare(tmp_path, make_job(9, write_interval="epoch", layout=other))
