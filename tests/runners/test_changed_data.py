"""Data that is changed during a run and put back: the run stays marked, because nothing else tells what was read."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest

import deploykit
from deploykit.artifact import Artifact
from deploykit.errors import DataError, DeviceError, IncompleteRunError, RunError
from deploykit.runs.datachange import CHANGED_NAME
from deploykit.runs.merging import merge_run
from deploykit.runs.verify_run import check_run
from deploykit.sources import base, open_source
from deploykit.storage.locations import DataFile
from deploykit.storage.stores import Store
from runners import changed
from runners.changed import watched
from tests import handmade

ROWS = 64
SIZE: dict[str, Any] = {"batch_size": 4, "shard_rows": 4}

Progress = Callable[[int, int], None]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", handmade.random_inputs("plain", ROWS)["x"])
    return tmp_path / "rows.npy"


def former(rows: Path) -> Path:
    return rows.with_name("former.npy")


def swap(rows: Path) -> None:
    """Another file in the place of the rows, as large and of the same sample."""
    shutil.copy(rows, rows.with_name("other.npy"))
    rows.rename(former(rows))
    rows.with_name("other.npy").rename(rows)


def swapping(rows: Path, also: Callable[[], object] = lambda: None) -> Progress:
    """What a run calls as it goes on: it swaps the rows once, and does that ``also``."""

    def told(done: int, total: int) -> None:
        if done < total and not former(rows).exists():
            swap(rows)
            also()

    return told


def require_marked(artifact: Path, rows: Path, out: Path, **options: Any) -> None:
    """Also when the rows are put back, nothing takes the run for a good one."""
    former(rows).replace(rows)
    with pytest.raises(RunError, match=r"r: data .*rows\.npy: was written to.*; predict the data again into a new dir"):
        deploykit.run(artifact, rows, out, **SIZE, **options)
    with pytest.raises(RunError, match=r"was written to.*into a new directory") as found:
        deploykit.verify(out)
    assert "resume" not in str(found.value)
    status = deploykit.status(out)
    assert (status.state, status.error is not None and "was written to" in status.error) == ("failed", True)
    assert str(status.to_resume).startswith("predict the data again into a new directory")


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_a_finished_run(artifact: Path, rows: Path, tmp_path: Path, devices: str) -> None:
    out = tmp_path / "r"
    with pytest.raises(DataError, match=r"was written to.*; leave it as it is .*, and predict .* a new directory"):
        deploykit.run(artifact, rows, out, **SIZE, devices=devices, progress=swapping(rows))
    assert not json.loads((out / "report.json").read_text())["complete"]
    require_marked(artifact, rows, out, devices=devices)
    assert not check_run(out).missing
    for partial in (False, True):
        with pytest.raises(RunError, match=r"merge: .*was written to.*; predict the data again into a new directory"):
            merge_run(out, tmp_path / "merged.npz", allow_partial=partial)
    (out / CHANGED_NAME).unlink()  # Whoever knows better.
    merge_run(out, tmp_path / "merged.npz")


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_a_run_that_was_stopped(artifact: Path, rows: Path, tmp_path: Path, devices: str) -> None:
    np.save(rows, handmade.random_inputs("plain", 64 * ROWS)["x"])  # More than is done before the signal is seen.
    told = swapping(rows, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(IncompleteRunError, match=r"stopped by SIGTERM(.|\n)*was written to") as end:
        deploykit.run(artifact, rows, tmp_path / "r", **SIZE, devices=devices, progress=told)
    assert end.value.exit_code == 143
    assert "same command" not in str(end.value)
    require_marked(artifact, rows, tmp_path / "r", devices=devices)


KILLED = """
import os, signal, sys, time
from pathlib import Path

import deploykit
from tests.runners.test_changed_data import SIZE, former, swap

artifact, rows, out, options = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), eval(sys.argv[4])

def told(done, total):
    if done and not former(rows).exists():
        swap(rows)
        until = time.monotonic() + 60
        while not (out / "data-changed.json").exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert deploykit.status(out).state == "running"
        assert "was written to" in deploykit.status(out).error
        os.kill(os.getpid(), signal.SIGKILL)

deploykit.run(artifact, rows, out, **SIZE, **options, progress=told)
"""


@pytest.mark.parametrize("options", [{"engine": "local", "devices": "cpu:2"}, {"engine": "array"}])
def test_a_run_that_was_killed(artifact: Path, rows: Path, tmp_path: Path, options: dict[str, str]) -> None:
    """It has no end at which to look."""
    np.save(rows, handmade.random_inputs("plain", 64 * ROWS)["x"])
    out = tmp_path / "r"
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(artifact), str(rows), str(out), repr(options)],
        env=os.environ | {"RANK": "0", "WORLD_SIZE": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=200,
    )
    assert ended.returncode == -signal.SIGKILL
    assert check_run(out).missing
    require_marked(artifact, rows, out)


def test_a_change_is_told_at_once(artifacts: dict[str, Artifact], rows: Path, tmp_path: Path) -> None:
    said: Queue[str] = Queue()
    source = open_source(str(rows), artifacts["plain"].manifest.inputs)
    with watched(source, "rows.npy", tmp_path, said.put):
        swap(rows)
        assert said.get(timeout=60).startswith("warning: data rows.npy: was written to")
    source.close()


def test_the_look_ends_with_the_run_and_other_threads_keep_the_size_of_their_stacks(
    artifacts: dict[str, Artifact], rows: Path, tmp_path: Path
) -> None:
    before, source = threading.stack_size(), open_source(str(rows), artifacts["plain"].manifest.inputs)
    with watched(source, "rows.npy", tmp_path, print):
        (looking,) = (thread for thread in threading.enumerate() if thread.name == "data")
        assert threading.stack_size() == before
    looking.join(60)
    assert not looking.is_alive()
    source.close()


def test_a_run_that_failed(artifact: Path, rows: Path, tmp_path: Path) -> None:
    def fail() -> None:
        raise DeviceError("the device is gone")

    with pytest.raises(DeviceError, match=r"gone\ndata .*rows\.npy: was written to.* a new directory"):
        deploykit.run(artifact, rows, tmp_path / "r", **SIZE, progress=swapping(rows, fail))
    require_marked(artifact, rows, tmp_path / "r")


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_rank_of_a_launcher(
    artifact: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    """With parts missing and without."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    out = tmp_path / "r"
    with pytest.raises(DataError, match="was written to"):
        deploykit.run(artifact, rows, out, **SIZE, engine="array", progress=swapping(rows))
    assert bool(check_run(out).missing) == (world_size > 1)
    if world_size == 1:
        assert not json.loads((out / "report.json").read_text())["complete"]
    require_marked(artifact, rows, out, engine="array")


def test_a_run_at_a_url(artifact: Path, rows: Path, bucket: str) -> None:
    url = f"{bucket}/r"
    with pytest.raises(DataError, match="was written to"):
        deploykit.run(artifact, rows, url, **SIZE, progress=swapping(rows))
    assert CHANGED_NAME in Store(url, "run", RunError).files()
    former(rows).replace(rows)
    with pytest.raises(RunError, match="was written to"):
        deploykit.run(artifact, rows, url, **SIZE)
    with pytest.raises(RunError, match="was written to"):
        deploykit.verify(url)
    assert deploykit.status(url).state == "failed"


def test_a_mark_that_cannot_be_read_is_none_the_less_one(artifact: Path, rows: Path, tmp_path: Path) -> None:
    deploykit.run(artifact, rows, tmp_path / "r", **SIZE)
    (tmp_path / "r" / CHANGED_NAME).write_text("{}")
    for ask in (deploykit.verify, deploykit.status):
        with pytest.raises(RunError, match=r"data-changed\.json cannot be read .*into a new directory"):
            ask(tmp_path / "r")


def failing(monkeypatch: pytest.MonkeyPatch, looks: int) -> list[int]:
    """A file server that does not answer the next ``looks`` questions after the first; gives those that are left."""
    left, first, real = [looks], [True], base._versions

    def versions(files: Sequence[DataFile]) -> dict[str, Any]:
        if not first and left[0]:
            left[0] -= 1
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        first.clear()
        return real(files)

    monkeypatch.setattr(base, "_versions", versions)
    return left


def test_a_server_that_does_not_answer_once_is_asked_again(
    artifacts: dict[str, Artifact], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changed, "LOOK_S", 0.01)
    told: Queue[str] = Queue()
    left = failing(monkeypatch, 2)
    source = open_source(str(rows), artifacts["plain"].manifest.inputs)
    source.fingerprint()
    with watched(source, str(rows), tmp_path, told.put):
        while left[0]:
            time.sleep(0.001)
        assert not (tmp_path / CHANGED_NAME).exists()
        swap(rows)
        assert "was written to" in told.get(timeout=60)
    source.close()


def test_data_that_cannot_be_looked_at_in_the_end_marks_nothing(
    artifact: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r"
    failing(monkeypatch, 10**9)
    with pytest.raises(DataError, match=r"rows\.npy: cannot be looked at again .*timed out.*same command again"):
        deploykit.run(artifact, rows, out, **SIZE)
    assert not (out / CHANGED_NAME).exists()
    assert not json.loads((out / "report.json").read_text())["complete"]
    monkeypatch.undo()
    deploykit.run(artifact, rows, out, **SIZE)
    assert json.loads((out / "report.json").read_text())["complete"]
    assert not check_run(out).missing
    deploykit.verify(out)
