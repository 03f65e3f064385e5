"""A run directory at a URL: what is there at every moment can be resumed, and in the end it is that of any run."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import deploykit
from deploykit.errors import DataError, DeploykitError, IncompleteRunError, RunError
from deploykit.storage.stores import Store
from runners import mirror
from tests import handmade

ROWS, SIZE = 40, {"batch_size": 4, "shard_rows": 4}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", handmade.random_inputs("plain", ROWS)["x"])
    return tmp_path / "rows.npy"


def names(url: str, folder: str = "") -> set[str]:
    return {name for name in Store(url, "run", RunError).files() if name.startswith(folder)}


def results(url: str) -> dict[str, bytes]:
    """The predictions at a URL, or in a directory."""
    filesystem, root = fsspec.core.url_to_fs(url)
    found = {path.removeprefix(root).lstrip("/"): path for path in filesystem.find(root)}
    return {name: filesystem.cat_file(path) for name, path in found.items() if re.match("parts/|predictions_", name)}


@pytest.mark.parametrize("interval", ["batch", "epoch", "batch_and_epoch"])
def test_the_files_are_those_of_a_run_on_this_machine(
    artifact: Path, rows: Path, bucket: str, tmp_path: Path, interval: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    options: dict[str, Any] = {**SIZE, "devices": "cpu:2", "write_interval": interval}
    deploykit.run(artifact, rows, tmp_path / "run", **options)
    for computed in (ROWS, 0):
        done = deploykit.run(artifact, rows, bucket, **options)
        assert (done.path, done.rows, done.computed_rows) == (bucket, ROWS, computed)
    assert done.notes[-1] == f"run directory {bucket}: the job is complete; nothing was left to do"
    merged = deploykit.merge(bucket, tmp_path / "all.npy")
    here = deploykit.merge(tmp_path / "run", tmp_path / "same.npy")
    np.testing.assert_array_equal(np.load(merged), np.load(here))
    if interval == "batch":
        assert results(bucket) == results(str(tmp_path / "run"))
    assert {name.partition("/")[0] for name in names(bucket)} >= {"run.json", "commits", "report.json", "report.html"}
    assert not [name for name in names(bucket) if ".lock" in name or "tmp" in name]
    check = deploykit.verify(bucket)
    assert (check.committed_rows, f"-o {bucket} " in check.to_resume) == (ROWS, True)
    found = deploykit.status(bucket)
    assert (found.path, found.state, found.done_rows) == (bucket, "finished", ROWS)
    assert not list((tmp_path / "temporary").iterdir())


def test_what_is_lost_is_computed_again_and_said_with_the_url(artifact: Path, rows: Path, bucket: str) -> None:
    deploykit.run(artifact, rows, bucket, **SIZE)
    whole = results(bucket)
    Store(bucket, "run", RunError).remove(["parts/part-000003.npy"])
    assert deploykit.status(bucket).damage == ("parts/part-000003.npy: the file is missing",)
    with pytest.raises(IncompleteRunError, match=rf"^run directory {bucket}: 36 of 40 .*to resume it: .* -o {bucket}"):
        deploykit.verify(bucket)
    assert deploykit.run(artifact, rows, bucket, **SIZE).computed_rows == 4
    assert results(bucket) == whole


def test_another_job_is_refused_and_changes_nothing(artifact: Path, rows: Path, bucket: str) -> None:
    deploykit.run(artifact, rows, bucket, **SIZE)
    whole = results(bucket)
    with pytest.raises(RunError, match=rf"^run directory {bucket}: holds another job: plan.batch_size: 4, asked for 8"):
        deploykit.run(artifact, rows, bucket, batch_size=8)
    assert results(bucket) == whole


def test_what_is_no_run_is_refused_and_stays(artifact: Path, rows: Path, bucket: str) -> None:
    Store(bucket, "run", RunError).put({"mine": rows})
    with pytest.raises(RunError, match=rf"^run directory {bucket}: is not empty and holds no run.json"):
        deploykit.run(artifact, rows, bucket)
    assert names(bucket) == {"mine"}


@pytest.mark.usefixtures("bucket")
def test_a_store_that_takes_nothing_is_refused_before_the_first_row(artifact: Path, rows: Path) -> None:
    with pytest.raises(RunError, match=r"^run directory s3://nosuchbucket/run: cannot be written \(FileNotFoundError"):
        deploykit.run(artifact, rows, "s3://nosuchbucket/run")


def test_a_store_that_fails_at_the_end_leaves_all_on_this_machine(
    artifact: Path, rows: Path, bucket: str, no_commits: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    said = rf"^run directory {bucket}: cannot .* All of the run is in (/.*): copy"
    with no_commits(), pytest.raises(RunError, match=said) as e:
        deploykit.run(artifact, rows, bucket, **SIZE)
    kept = re.search(r"is in (\S+): copy", str(e.value))
    assert kept is not None
    assert deploykit.verify(kept[1]).committed_rows == ROWS
    # There, no part counts; the same command sends them.
    assert deploykit.status(bucket).done_rows == 0
    deploykit.run(artifact, rows, bucket, **SIZE)
    assert results(bucket) == results(kept[1])


def test_what_is_here_is_sent_also_where_the_disk_is_full(
    artifact: Path, rows: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RunError("no space left on device")

    made = mirror.Mirror(Store(bucket, "run directory", RunError), finished(artifact, rows, tmp_path / "a" / "run"))
    made.send()
    monkeypatch.setattr(Store, "fetch", full)
    made.send()
    assert len(results(bucket)) == ROWS // 4


@pytest.mark.parametrize("fails", [False, True])
def test_an_error_of_the_run_comes_first(
    artifact: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    x = handmade.random_inputs("plain", ROWS)["x"]
    x[30, 1] = np.nan
    np.save(tmp_path / "rows.npy", x)
    if fails:
        monkeypatch.setattr(mirror.Mirror, "send", refuse)
    with pytest.raises(DeploykitError, match=r"^input 'x', row 30 at \[1\]: NaN; clean the data and name") as failed:
        deploykit.run(artifact, tmp_path / "rows.npy", bucket, **SIZE)
    assert ("\nthe store is gone. All of the run is in /" in str(failed.value)) == fails
    assert deploykit.status(bucket).state == ("not started" if fails else "failed")


def test_what_stopped_the_run_is_told_elsewhere_with_the_url(
    artifact: Path, rows: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``status`` has a copy of its own, and knows nothing of the one in which the run worked."""

    def fail(_setting: Any, directory: Any, **_: Any) -> None:
        raise RunError(f"run directory {directory.path}: the disk is full")

    monkeypatch.setattr("runners.engines.execute.finish_files", fail)
    with pytest.raises(RunError, match=f"^run directory {bucket}: the disk is full$"):
        deploykit.run(artifact, rows, bucket, **SIZE, write_interval="epoch")
    assert deploykit.status(bucket).error == f"run directory {bucket}: the disk is full"


def refuse(_: mirror.Mirror) -> None:
    raise RunError("the store is gone")


def test_a_commit_never_comes_before_its_part(
    artifact: Path, rows: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent as often as possible, the URL is looked at before every file."""
    put = Store.put
    states = []

    def watched(store: Store, files: Mapping[str, Path]) -> None:
        for name, file in files.items():
            put(store, {name: file})
            if name.startswith("commits/part-"):
                states.append(set(store.files()))

    monkeypatch.setattr(Store, "put", watched)
    monkeypatch.setattr(mirror, "PERIOD_S", 0.01)
    deploykit.run(artifact, rows, bucket, **SIZE, write_interval="batch_and_epoch")
    assert states
    for state in states:
        assert "run.json" in state
        parts = {name.partition(".")[0].removeprefix("parts/") for name in state if name.startswith("parts/")}
        assert parts >= {
            name.removeprefix("commits/").removesuffix(".json") for name in state if "commits/part" in name
        }


def finished(artifact: Path, rows: Path, out: Path, **options: Any) -> Path:
    deploykit.run(artifact, rows, out, **{**SIZE, **options})
    return out


def sent(url: str, copy: Path) -> mirror.Mirror:
    """What a machine does that works in ``copy`` and began before anything was at the URL."""
    made = mirror.Mirror(Store(url, "run directory", RunError), copy)
    made.start()
    return made


def test_of_two_jobs_that_begin_at_the_same_time_one_counts(
    artifact: Path, rows: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PAUSE_S", 0)
    first = sent(bucket, finished(artifact, rows, tmp_path / "a" / "first"))
    np.save(tmp_path / "other.npy", handmade.random_inputs("plain", ROWS)["x"] + 1)
    second = sent(bucket, finished(artifact, tmp_path / "other.npy", tmp_path / "b" / "second"))
    first.send()
    whole = results(bucket)
    with pytest.raises(RunError, match=rf"^run directory {bucket}: holds another job: .*data"):
        second.send()
    problem = second.finish()
    assert problem is not None
    kept = rf"All of the run is in {tmp_path}/b/second: never copy it there; copy it to a new place"
    assert re.search(rf"holds another job: .* {kept}", str(problem))
    assert results(bucket) == whole
    assert first.finish() is None


def test_of_two_that_begin_at_the_same_time_neither_takes_over_the_policy_of_the_other(
    artifact: Path, rows: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts of each name its own job."""
    monkeypatch.setattr(mirror, "PAUSE_S", 0)
    first = sent(bucket, finished(artifact, rows, tmp_path / "a" / "first"))
    second = sent(bucket, finished(artifact, rows, tmp_path / "b" / "second", on_error="skip"))
    first.send()
    with pytest.raises(RunError, match=r"holds another job: on_error: 'fail', asked for 'skip'"):
        second.send()
    assert second.finish() is not None
    assert first.finish() is None
    assert deploykit.verify(bucket).committed_rows == ROWS


def test_a_run_that_a_nan_has_stopped_goes_on_with_it(artifact: Path, rows: Path, bucket: str, tmp_path: Path) -> None:
    """What says so is at the URL from then on, for whoever takes the run up elsewhere."""
    x = np.load(rows)
    x[21, 1] = np.nan
    np.save(rows, x)
    with pytest.raises(DataError, match=r"row 21.*give the same command again with --nan allow"):
        deploykit.run(artifact, rows, bucket, **SIZE)
    sent_before = results(bucket)
    deploykit.run(artifact, rows, bucket, **SIZE, nan="allow")
    assert sent_before.items() <= results(bucket).items()
    deploykit.run(artifact, rows, tmp_path / "whole", **SIZE, nan="allow")
    assert results(bucket) == results(str(tmp_path / "whole"))
    with pytest.raises(RunError, match="holds another job: nan: 'allow', asked for 'error'"):
        deploykit.run(artifact, rows, bucket, **SIZE)
    assert deploykit.verify(bucket).committed_rows == ROWS


@pytest.mark.parametrize("answer", [b"<html>try again</html>", b"null"])
def test_an_answer_that_is_no_job_is_an_error_of_the_store_and_asked_for_again(
    artifact: Path, rows: Path, bucket: str, tmp_path: Path, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = mirror.Mirror(Store(bucket, "run directory", RunError), finished(artifact, rows, tmp_path / "a" / "run"))
    read = Store.read
    monkeypatch.setattr(Store, "read", lambda *_: answer)
    with pytest.raises(RunError, match=r"run\.json"):
        made.send()
    assert results(bucket) == {}
    monkeypatch.setattr(Store, "read", read)
    made.start()
    assert made.finish() is None
    assert len(results(bucket)) == ROWS // 4


def test_of_two_machines_at_the_same_job_the_last_leaves_its_files_alone(
    artifact: Path, rows: Path, bucket: str, tmp_path: Path
) -> None:
    interval = {"write_interval": "epoch"}
    two = sent(bucket, finished(artifact, rows, tmp_path / "a" / "two", devices="cpu:2", **interval))
    one = sent(bucket, finished(artifact, rows, tmp_path / "b" / "one", devices="cpu", **interval))
    assert two.finish() is None
    assert one.finish() is None
    assert sorted(results(bucket)) == ["predictions_0.npy"]
    assert deploykit.verify(bucket).committed_rows == ROWS


def test_what_is_half_written_stays_here_and_folders_that_vanish_stop_nothing(
    artifact: Path, rows: Path, bucket: str, tmp_path: Path
) -> None:
    copy = finished(artifact, rows, tmp_path / "a" / "run")
    (copy / ".tmp-1-rank-0").mkdir()
    (copy / ".tmp-1-rank-0" / "predictions_0.npy").touch()
    made = mirror.Mirror(Store(bucket, "run directory", RunError), copy)
    made.send()
    assert not [name for name in names(bucket) if "tmp" in name]
    assert "parts/part-000000.npy" in names(bucket)


def test_a_store_that_fails_meanwhile_is_told_once_and_tried_again(
    artifact: Path, rows: Path, bucket: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(mirror, "PERIOD_S", 0.01)
    made = mirror.Mirror(Store(bucket, "run directory", RunError), finished(artifact, rows, tmp_path / "a" / "run"))
    send, tries = made.send, []

    def flaky() -> None:
        tries.append(None)
        if len(tries) < 4:
            raise RunError("the store is tired") if len(tries) % 2 else OSError("a folder vanished")
        send()

    monkeypatch.setattr(made, "send", flaky)
    made.start()
    until = time.monotonic() + 30
    while len(tries) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    assert made.finish() is None
    told = capsys.readouterr().err
    assert told.count("note: the store is tired. The run goes on in /") == 1
    assert "vanished" not in told
    assert len(results(bucket)) == ROWS // 4


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_stopped_goes_on_elsewhere(
    artifact: Path, tmp_path: Path, bucket: str, kill: signal.Signals
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, "-m", "deploykit", "run", str(artifact), "--data", "slow.py:make", "-o", bucket]
    command += ["--batch-size", "4", "--shard-rows", "4", "--devices", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "SLOW_S": "0.3"}
    started = subprocess.Popen([sys.executable, "-c", OFTEN, *command[3:]], cwd=tmp_path, env=environment)
    until = time.monotonic() + 60
    while len(names(bucket, "commits/")) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    started.send_signal(kill)
    assert started.wait(60) in (-signal.SIGKILL, 128 + signal.SIGTERM)
    there = len(names(bucket, "commits/"))
    assert 2 <= there < ROWS // 4
    again = subprocess.run(
        command, cwd=tmp_path, env={**environment, "SLOW_S": "0"}, capture_output=True, text=True, check=True
    )
    assert f"{ROWS - 4 * there} computed now" in again.stdout
    assert deploykit.verify(bucket).committed_rows == ROWS


SLOW = """
import os, time
import numpy as np

class Rows:
    def __len__(self):
        return 40
    def __getitem__(self, number):
        time.sleep(float(os.environ["SLOW_S"]) / 4)
        return {"x": np.full(4, number, np.float32)}

def make():
    return Rows()
"""

OFTEN = """
import sys
from runners import mirror
mirror.PERIOD_S = 0.05
from deploykit.cli import main
main(sys.argv[1:])
"""
