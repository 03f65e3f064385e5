"""Data that comes but once: drawn once, whatever happens, and predicted as any other."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import deploykit
from deploykit.cli import main
from deploykit.cli.status import _describe as describe
from deploykit.errors import DataError, DeploykitError, RunError, UsageError
from deploykit.runs.early import refuse_foreign
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.verify_run import verify_run
from deploykit.runs.watching import run_status
from deploykit.sources import spool, spoolfiles
from runners import job, jobdata
from runners.job import run
from runners.onnx_runner import OnnxRunner
from tests import handmade

from . import loaders, streams
from .test_factories import FILE, rows_of

STREAM = f"{Path(streams.__file__)}:stream"
OPTIONS: dict[str, Any] = {"batch_size": 4, "shard_rows": 8, "devices": "cpu"}


def times(drawn: Path) -> int:
    return len(drawn.read_text().splitlines())


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_a_stream_is_drawn_once(artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path, devices: str) -> None:
    out = tmp_path / "r"
    result = run(artifact_paths["plain"], STREAM, out, **{**OPTIONS, "devices": devices})
    assert (result.rows, result.computed_rows, times(drawn)) == (60, 60, 1)
    assert any(
        "what it returns, of type generator, is an iterable, so it was gone through once: 60 rows" in note
        for note in result.notes
    )
    assert verify_run(out).ok
    assert run_status(out).state == "finished"
    assert [path.name for path in (out / "spool").iterdir()] == ["spool.json"]
    merged = np.load(deploykit.merge(out, tmp_path / "all.npz"))
    assert len(merged["logits"]) == 60
    again = run(artifact_paths["plain"], STREAM, out, **{**OPTIONS, "devices": devices})
    assert (again.computed_rows, times(drawn)) == (0, 1)
    assert any("nothing was left to do" in note for note in again.notes)


@pytest.mark.parametrize(
    ("factory", "rows", "said"),
    [
        ("half", 30, "30 rows came of the 60 of its Tensor: at least 30 are left out by its sampler"),
        ("counted_lines_that_fill_batches", 56, "56 rows came of the 60 of its Counted: at least 4 are left out"),
        ("lines_that_fill_batches", 56, "has drop_last=True: the last rows of its Lines, of each of its 2 workers, do"),
        ("all_in_another_order", 60, None),
        ("lines", 60, None),
    ],
)
def test_rows_that_a_loader_leaves_out_are_told(
    artifact_paths: dict[str, Path], tmp_path: Path, factory: str, rows: int, said: str | None
) -> None:
    result = run(artifact_paths["plain"], f"{FILE}:{factory}", tmp_path / "r", **OPTIONS)
    assert result.rows == rows
    told = [note for note in result.notes if "get no prediction" in note]
    assert len(told) == (said is not None)
    assert said is None or said in told[0]


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_loader_of_an_iterable_with_its_own_workers(
    artifact_paths: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    run(artifact_paths["plain"], f"{FILE}:lines", tmp_path / "r", runner=kind, **{**OPTIONS, "devices": "cpu:2"})
    found = rows_of(tmp_path / "r", "logits")
    halves = [loaders.X[first::2].split(7) for first in (0, 1)]
    order = np.concatenate([batch for pair in zip(*halves, strict=True) for batch in pair])
    wanted = handmade.expected("plain", {"x": order})["logits"]
    np.testing.assert_allclose([found[row] for row in range(60)], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factory", ["buckets", "bare"])
@pytest.mark.parametrize("batch_size", [4, "auto"])
def test_rows_of_different_shapes(
    artifact_paths: dict[str, Path], tmp_path: Path, factory: str, batch_size: Any
) -> None:
    """A batch has rows of one shape; the user's own padding is kept."""
    options = {**OPTIONS, "batch_size": batch_size, "shard_rows": 8 if batch_size == 4 else None}
    run(artifact_paths["pair"], f"{FILE}:{factory}", tmp_path / "r", writer="pt", **options)
    assert verify_run(tmp_path / "r").ok
    order = list(range(20)) if factory == "bare" else sorted(range(20), key=lambda row: loaders.LENGTHS[row])
    found = rows_of(tmp_path / "r")
    for place, row in enumerate(order):
        np.testing.assert_array_equal(found[place], loaders.expected_pair(found[place], row))
        group = order[place // 3 * 3 :][:3] if factory == "buckets" else [row]
        assert len(found[place]) == max(loaders.LENGTHS[each] for each in group)


def test_no_rows(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    for _ in range(2):
        assert run(artifact_paths["plain"], f"{FILE}:nothing", tmp_path / "r", **OPTIONS).rows == 0
        assert verify_run(tmp_path / "r").ok


@pytest.fixture
def interrupted(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> np.ndarray[Any, Any]:
    """The rows of a run that failed after three of eight parts."""
    out, write = tmp_path / "r", RunDirectory.write_part

    def broken(self: RunDirectory, shard: Any, *arguments: Any, **options: Any) -> Any:
        if shard.index == 3:
            raise RunError("the disk went away")
        return write(self, shard, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(RunDirectory, "write_part", broken)
        with pytest.raises(RunError, match="the disk went away"):
            run(artifact_paths["plain"], STREAM, out, **OPTIONS)
    assert run_status(out).state == "failed"
    return np.fromfile(out / "spool" / "input-0.bin", np.float32).reshape(60, 4)


def assert_predicted(out: Path, values: np.ndarray[Any, Any]) -> None:
    found = rows_of(out, "logits")
    wanted = handmade.expected("plain", {"x": values})["logits"]
    np.testing.assert_allclose([found[row] for row in range(60)], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(values[:, 0], np.arange(60))


def test_resume_reads_the_rows_that_were_drawn(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path, interrupted: np.ndarray[Any, Any]
) -> None:
    result = run(artifact_paths["plain"], STREAM, tmp_path / "r", **{**OPTIONS, "devices": "cpu:2"})
    assert (result.computed_rows, times(drawn)) == (60 - 24, 1)
    assert any("the 60 rows that were drawn before are used" in note for note in result.notes)
    assert_predicted(tmp_path / "r", interrupted)


def array_rank(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """This process is one of two jobs of an array."""
    known = {"TASK_ID": rank, "TASK_COUNT": 2, "TASK_MIN": 0, "TASK_MAX": 1, "TASK_STEP": 1, "JOB_ID": 7}
    for name, value in known.items():
        monkeypatch.setenv(f"SLURM_ARRAY_{name}", str(value))


def test_a_launcher_resumes_with_the_rows_that_were_drawn(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path, interrupted: np.ndarray[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for rank in (0, 1):
        array_rank(monkeypatch, rank)
        run(artifact_paths["plain"], STREAM, tmp_path / "r", **{**OPTIONS, "engine": "array"})
    assert times(drawn) == 1
    assert verify_run(tmp_path / "r").ok
    assert_predicted(tmp_path / "r", interrupted)
    assert [path.name for path in (tmp_path / "r" / "spool").iterdir()] == ["spool.json"]


@pytest.mark.parametrize("engine", ["local", "array"])
def test_drawn_rows_that_were_damaged_since_are_not_predicted(
    artifact_paths: dict[str, Path], tmp_path: Path, interrupted: np.ndarray[Any, Any], engine: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    array_rank(monkeypatch, 0)
    rows = tmp_path / "r" / "spool" / "input-0.bin"
    data = bytearray(rows.read_bytes())
    data[-1] ^= 1
    rows.write_bytes(data)
    with pytest.raises(RunError, match=r"rows in spool are not what they were .* remove .*spool and give the same"):
        run(artifact_paths["plain"], STREAM, tmp_path / "r", **{**OPTIONS, "engine": engine})
    assert RunDirectory.open(tmp_path / "r").committed_rows() == 24


def test_an_iterable_that_fails_names_the_row_and_is_drawn_again(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN_ROW", "17")
    with pytest.raises(DataError, match="row 17: the iterable: raised OSError: the connection was lost"):
        run(artifact_paths["plain"], STREAM, tmp_path / "r", **OPTIONS)
    assert list((tmp_path / "r").iterdir()) == []
    monkeypatch.delenv("BROKEN_ROW")
    assert run(artifact_paths["plain"], STREAM, tmp_path / "r", **OPTIONS).rows == 60
    assert times(drawn) == 2


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_who_mends_a_drawn_row_is_told_that_it_is_not_drawn_again(
    artifact_paths: dict[str, Path], tmp_path: Path, devices: str
) -> None:
    np.save(tmp_path / "x.npy", np.full((20, 4), np.nan, np.float32))
    factory = tmp_path / "odd.py"
    factory.write_text(f"import numpy\ndef make():\n    return iter(numpy.load({str(tmp_path / 'x.npy')!r}))\n")
    for _ in range(2):
        with pytest.raises(DataError, match=r"NaN; .*\. The rows are drawn already, .* into a new run directory"):
            run(artifact_paths["plain"], f"{factory}:make", tmp_path / "r", **{**OPTIONS, "devices": devices})
        np.save(tmp_path / "x.npy", np.zeros((20, 4), np.float32))
    assert run(artifact_paths["plain"], f"{factory}:make", tmp_path / "new", **OPTIONS).rows == 20


@pytest.mark.parametrize("factory", ["stream", "make"])
def test_so_is_who_mends_a_row_that_the_model_does_not_take(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("an odd row")

    monkeypatch.setattr(OnnxRunner, "_infer", fail)
    data = STREAM if factory == "stream" else f"{Path(FILE).parent / 'slowdata.py'}:make"
    with pytest.raises(RunError, match=r"the model failed with ValueError: an odd row; mend the cause and") as failed:
        run(artifact, data, tmp_path / "r", **OPTIONS)
    assert ("drawn already" in str(failed.value)) == (factory == "stream")


def test_a_full_disk(artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = spoolfiles.HashedFile.write, []

    def full(self: Any, array: Any) -> None:
        calls.append(1)
        if len(calls) == 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, array)

    monkeypatch.setattr(spoolfiles.HashedFile, "write", full)
    with pytest.raises(RunError, match=r"spool: No space left on device, after 9 rows .* give the same command again"):
        run(artifact_paths["plain"], STREAM, tmp_path / "r", **OPTIONS)
    assert list((tmp_path / "r").iterdir()) == []
    monkeypatch.undo()
    assert run(artifact_paths["plain"], STREAM, tmp_path / "r", **OPTIONS).rows == 60


def test_a_disk_that_is_full_at_the_end(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spoolfiles.HashedFile, "flush", full)
    with pytest.raises(RunError, match=r"No space left on device, after 60 rows .* which are removed"):
        run(artifact_paths["plain"], STREAM, tmp_path / "r", **OPTIONS)
    assert list((tmp_path / "r").iterdir()) == []
    assert run_status(tmp_path / "r").state == "not started"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_rows_are_drawn(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path, number: signal.Signals
) -> None:
    out = tmp_path / "r"
    words = ["run", str(artifact_paths["plain"]), "--data", STREAM, "-o", str(out), "--batch-size", "4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "deploykit", *words], env={**os.environ, "SLOW_S": "0.05"}, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    while not times(drawn) or not (out / "spool").exists():
        assert process.poll() is None
        time.sleep(0.01)
    while not (found := run_status(out)).drawn_rows:
        assert process.poll() is None
        time.sleep(0.01)
    assert found.state == "drawing"
    said_while = click.unstyle(describe(found))
    assert re.search(r"drawing\n  [1-9]\d* rows have come; they are predicted when all have$", said_while)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    if number == signal.SIGKILL:
        assert (out / "spool" / "input-0.bin").exists()
        killed = run_status(out)
        assert killed.state == "interrupted"
        assert killed.drawn_rows is not None
        assert killed.drawn_rows >= found.drawn_rows
        assert "the same deploykit run command again draws them from the beginning" in describe(killed)
    else:
        assert process.returncode == 128 + number
        assert f"stopped by {number.name} after" in said
        assert "give the same command again" in said
        assert list(out.iterdir()) == []
        assert run_status(out).state == "not started"
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    assert times(drawn) == 2
    assert verify_run(out).ok


def test_what_may_be_there_before_a_run(tmp_path: Path) -> None:
    """A spool that another process has just removed, and what NFS makes of a removed file, are nobody else's."""
    assert spool.is_spool(tmp_path / "gone")
    (tmp_path / ".nfs000000000012").touch()
    refuse_foreign(tmp_path)
    (tmp_path / "spool").touch()
    assert not spool.is_spool(tmp_path / "spool")
    with pytest.raises(RunError, match="is not empty"):
        refuse_foreign(tmp_path)


def test_directories_of_others_are_left_alone(artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path) -> None:
    mine = tmp_path / "mine" / "spool"
    mine.mkdir(parents=True)
    (mine / "diary.txt").write_text("dear diary")
    np.save(tmp_path / "x.npy", loaders.X.numpy())
    run(artifact_paths["plain"], tmp_path / "x.npy", tmp_path / "npy", **OPTIONS)
    for out in ("mine", "npy"):
        with pytest.raises(RunError, match=r"is not empty|holds another job"):
            run(artifact_paths["plain"], STREAM, tmp_path / out, **OPTIONS)
    assert (mine / "diary.txt").read_text() == "dear diary"
    assert times(drawn) == 0
    run(artifact_paths["plain"], STREAM, tmp_path / "r", **OPTIONS)
    with pytest.raises(RunError, match=r"holds rows of streams.py:stream, drawn for .*, asked for .*x\.npy"):
        run(artifact_paths["plain"], tmp_path / "x.npy", tmp_path / "r", **OPTIONS)
    with pytest.raises(RunError, match=r"holds another job: plan\.batch_size"):
        run(artifact_paths["plain"], STREAM, tmp_path / "r", **{**OPTIONS, "batch_size": 2})
    assert times(drawn) == 1


def test_two_commands_at_the_same_moment(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one draws between this one's look at the directory and its turn, or before this one begins the job."""
    out, draw, prepare = tmp_path / "r", jobdata.draw, RunDirectory.prepare

    def other_first(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(jobdata, "draw", draw)
        run(artifact_paths["plain"], STREAM, out, **OPTIONS)
        return draw(*arguments, **options)

    monkeypatch.setattr(jobdata, "draw", other_first)
    result = run(artifact_paths["plain"], STREAM, out, **OPTIONS)
    assert (result.computed_rows, times(drawn)) == (0, 1)

    def other_between(path: Path, job: Any) -> RunDirectory:
        spool.clear(path / "spool")
        with spool.Spool(path / "spool", {"target": "other", "keys": {}}, handmade.INPUTS["plain"]):
            pass
        return prepare(path, job)

    monkeypatch.setattr(RunDirectory, "prepare", other_between)
    with pytest.raises(RunError, match="another run has replaced the rows in spool by others"):
        run(artifact_paths["plain"], STREAM, tmp_path / "s", **OPTIONS)


def test_rows_that_no_job_has_taken_up_make_room_for_others(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path
) -> None:
    """The command that drew them was wrong in what is looked at later."""
    out, wrong = tmp_path / "r", {**OPTIONS, "shard_rows": 7}
    with pytest.raises(UsageError, match="must be a multiple"):
        run(artifact_paths["plain"], STREAM, out, **wrong)
    assert json.loads((out / "spool" / "spool.json").read_text())["rows"] == 60
    run(artifact_paths["plain"], f"{FILE}:lines", out, **OPTIONS)
    assert times(drawn) == 1
    assert verify_run(out).ok
    assert sorted(rows_of(out, "logits")) == list(range(60))


def test_rows_whose_job_is_about_to_begin_make_no_room_for_others(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command comes when they are drawn, and before there is a ``run.json``."""
    out, settle = tmp_path / "r", job.settle_batch_size
    monkeypatch.setattr("runners.system.lock.PATIENCE_S", 0.1)

    def another(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(job, "settle_batch_size", settle)
        assert not (out / "run.json").exists()
        with pytest.raises(RunError, match="another run is writing into it"):
            run(artifact_paths["plain"], f"{FILE}:lines", out, **OPTIONS)
        return settle(*arguments, **options)

    monkeypatch.setattr(job, "settle_batch_size", another)
    run(artifact_paths["plain"], STREAM, out, **OPTIONS)
    assert times(drawn) == 1
    assert verify_run(out).ok


@pytest.mark.parametrize("launched", [False, True])
def test_rows_that_no_job_has_taken_up_do_not_stay_beside_another_job(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launched: bool
) -> None:
    """They would keep it from being resumed."""
    out, options = tmp_path / "r", OPTIONS
    with pytest.raises(UsageError, match="must be a multiple"):
        run(artifact_paths["plain"], STREAM, out, **{**OPTIONS, "shard_rows": 7})
    if launched:
        array_rank(monkeypatch, 0)
        options = {**OPTIONS, "engine": "array"}
    np.save(tmp_path / "x.npy", loaders.X.numpy())
    for _ in range(2):
        run(artifact_paths["plain"], tmp_path / "x.npy", out, **options)
    assert not (out / "spool").exists()


def test_a_part_that_is_lost_after_the_end_cannot_be_made_again(
    artifact_paths: dict[str, Path], tmp_path: Path
) -> None:
    run(artifact_paths["plain"], STREAM, tmp_path / "r", **OPTIONS)
    next((tmp_path / "r" / "parts").iterdir()).unlink()
    with pytest.raises(DeploykitError, match=r"were removed from .* when the run was finished, and cannot be drawn"):
        run(artifact_paths["plain"], STREAM, tmp_path / "r", **OPTIONS)
