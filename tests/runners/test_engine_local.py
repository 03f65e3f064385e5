"""The local engine gives the next shard to whoever is free, and plug-ins extend the table of engines."""

import json
import signal
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from deploykit.errors import DataError, IncompleteRunError, RunError
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.verify_run import verify_run
from runners.engines import local as engine_local
from runners.engines.base import Engine
from runners.engines.execute import drive
from runners.engines.local import place
from runners.engines.setting import Computed, ProgressChoice, Setting
from runners.engines.table import choose_engine
from runners.engines.work import Outcome, Work
from runners.job import run

ONE_SLOW = """
import os, sys, time
import numpy as np
slow = False
class Rows:
    def __len__(self):
        return 128
    def __getitem__(self, row):
        if slow:
            time.sleep(0.05)
        return np.full(4, row, np.float32)
def make():
    global slow
    if "runners.ranks.rank" in " ".join(sys.orig_argv):
        try:
            os.close(os.open({marker!r}, os.O_CREAT | os.O_EXCL))
            slow = True
        except FileExistsError:
            pass
    return Rows()
"""


def test_a_slow_device_does_not_hold_the_job(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    """One rank of two takes 0.2 s for a shard, the other next to nothing."""
    data = tmp_path / "rows.py"
    data.write_text(ONE_SLOW.format(marker=str(tmp_path / "marker")))
    run(artifact_paths["plain"], f"{data}:make", tmp_path / "r", devices="cpu:2", batch_size=4, shard_rows=4)
    ranks = [commit.rank for commit in RunDirectory.open(tmp_path / "r").state().parts.values()]
    counts = sorted([ranks.count(0), ranks.count(1)])
    assert counts[0] > 0, "the slow one works as well"
    assert counts[1] > 2 * counts[0]


SAYS_GOODBYE = """
import atexit, os, sys
import numpy as np
if "runners.ranks.rank" in " ".join(sys.orig_argv):
    left_open = open(os.path.join({folder!r}, f"left-{{os.getpid()}}"), "w")
    left_open.write("not flushed")
def make():
    if "runners.ranks.rank" in " ".join(sys.orig_argv):
        atexit.register(sys.stdout.write, "goodbye")
    return np.zeros((8, 4), np.float32)
"""


def test_a_rank_ends_with_the_exit_handlers_and_files_of_the_users_code(
    artifact_paths: dict[str, Path], tmp_path: Path
) -> None:
    data = tmp_path / "rows.py"
    data.write_text(SAYS_GOODBYE.format(folder=str(tmp_path)))
    run(artifact_paths["plain"], f"{data}:make", tmp_path / "r", devices="cpu:2", batch_size=4, shard_rows=4)
    logs = [tmp_path / "r" / "logs" / f"rank-{rank}.log" for rank in range(2)]
    assert [log.read_text() for log in logs] == ["goodbye", "goodbye"]
    assert [left.read_text() for left in tmp_path.glob("left-*")] == ["not flushed", "not flushed"]


class Counting(Engine):
    """As documentation tells the author of an engine to do it."""

    seen = 0

    def run(self, setting: Setting, out: Path, *, progress: ProgressChoice, notes: list[str]) -> Computed:
        def counted(work: Work) -> Outcome:
            type(self).seen += len(work.shards)
            return place(work)

        return drive(setting, out, counted, progress=progress, notes=notes)


def test_an_engine_of_somebody_else(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((40, 4), np.float32))
    name = f"{Path(__file__)}:Counting"
    engine: Any = type(choose_engine(name).engine)
    options: dict[str, Any] = {"batch_size": 4, "shard_rows": 8, "engine": name}
    run(artifact_paths["plain"], tmp_path / "x.npy", tmp_path / "r", **options)
    assert engine.seen == 5
    assert verify_run(tmp_path / "r").rows == 40


def test_an_engine_that_is_entered_is_left(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[bool] = []
    monkeypatch.setattr("runners.engines.local.LocalEngine.__exit__", lambda *_: left.append(True), raising=False)
    np.save(tmp_path / "x.npy", np.ones((3, 4), np.float32))
    run(artifact_paths["plain"], tmp_path / "x.npy", tmp_path / "r")
    assert left == [True]


@pytest.mark.parametrize("rows", [64, 65])
def test_a_file_that_is_replaced_before_the_ranks_open_it_is_refused(
    rows: int, artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its predictions would pass for those of the file that the job names."""
    data, start = tmp_path / "rows.npy", engine_local._Ranks.start

    def late(*arguments: Any) -> None:
        np.save(tmp_path / "other.npy", np.ones((rows, 4), np.float32))
        (tmp_path / "other.npy").replace(data)
        start(*arguments)

    np.save(data, np.zeros((64, 4), np.float32))
    monkeypatch.setattr(engine_local._Ranks, "start", late)
    with pytest.raises(DataError, match=r"rows\.npy: were replaced while the run began"):
        run(artifact_paths["mc"], data, tmp_path / "r", devices="cpu:2", batch_size=8)
    assert not list((tmp_path / "r" / "commits").iterdir())


@pytest.mark.parametrize("is_at_url", [False, True])
def test_one_of_many_files_that_is_replaced_before_the_ranks_open_them_is_refused(
    is_at_url: bool, artifact_paths: dict[str, Path], tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many rows and bytes; at the URL it is none of those of which a sample is taken."""
    place, start = bucket if is_at_url else str(tmp_path / "rows"), engine_local._Ranks.start

    def write(number: int, text: str) -> None:
        with fsspec.open(f"{place}/{number:02}.csv", "w", auto_mkdir=True) as file:
            file.write("a,b,c,d\n" + text * 2)

    def late(*arguments: Any) -> None:
        write(1, "1,1,1,1\n")
        start(*arguments)

    for number in range(32):
        write(number, "0,0,0,0\n")
    monkeypatch.setattr(engine_local._Ranks, "start", late)
    with pytest.raises(DataError, match="were replaced while the run began"):
        run(artifact_paths["mc"], place, tmp_path / "r", devices="cpu:2", batch_size=8)
    assert not list((tmp_path / "r" / "commits").iterdir())


@pytest.mark.parametrize("name", ["rows.npy", "rows.csv", "folder"])
@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_data_that_is_written_to_during_the_run_is_no_success(
    name: str, devices: str, artifact_paths: dict[str, Path], tmp_path: Path
) -> None:
    """Nobody knows which rows were read; what was predicted is there all the same."""
    data = tmp_path / name
    written = data / "b.csv" if name == "folder" else data
    if name == "rows.npy":
        np.save(data, np.zeros((64, 4), np.float32))
    else:
        written.parent.mkdir(exist_ok=True)
        for path in {written, written.with_name("a.csv") if name == "folder" else written}:
            path.write_text("a,b,c,d\n" + "0,0,0,0\n" * 32)

    def append(done: int, total: int) -> None:
        if done == total:
            with written.open("ab") as file:
                file.write(b"9,9,9,9\n")

    out = tmp_path / "r"
    with pytest.raises(DataError, match=f"{name}: was written to, replaced or removed while it was read"):
        run(artifact_paths["mc"], data, out, devices=devices, batch_size=8, progress=append)
    with pytest.raises(RunError, match="was written to"):
        verify_run(out)
    report = json.loads((out / "report.json").read_text())
    assert not report["complete"]
    assert "was written to" in report["notes"][-1]
    with pytest.raises(RunError, match="into a new directory"):
        run(artifact_paths["mc"], data, out, devices=devices, batch_size=8)


def test_a_signal_while_what_is_there_is_checked_says_so(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", np.ones((3, 4), np.float32))
    run(artifact_paths["plain"], tmp_path / "x.npy", tmp_path / "r")

    def check(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("deploykit.runs.commit.Digests.damage", check)
    with pytest.raises(
        IncompleteRunError, match=r"stopped by SIGTERM while what is there was checked; .*deploykit run"
    ) as end:
        run(artifact_paths["plain"], tmp_path / "x.npy", tmp_path / "r")
    assert end.value.exit_code == 143


def test_a_signal_while_the_data_is_opened_says_so(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    """As where the rows of a large text file are counted."""
    data = tmp_path / "data.py"
    data.write_text("import signal\ndef make():\n    signal.raise_signal(signal.SIGTERM)\n")
    with pytest.raises(IncompleteRunError, match=r"r: stopped by SIGTERM while the data was opened; give") as end:
        run(artifact_paths["plain"], f"{data}:make", tmp_path / "r")
    assert end.value.exit_code == 143
    assert not (tmp_path / "r").exists()
