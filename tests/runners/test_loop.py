"""The predict loop over in-memory sources and runners, with faults in each of its threads."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.errors import CodeExitedError, DataError, RunError
from deploykit.plan import Plan, Shard
from deploykit.runs.commit import Commit
from deploykit.runs.job import Job
from deploykit.runs.rundir import RunDirectory
from deploykit.tensors import TensorSpec
from deploykit.writers import Batch, make_writer
from runners.pipeline import loop
from runners.pipeline.loop import Pipeline
from runners.pipeline.task import Task
from runners.pipeline.timing import Meter
from runners.pipeline.underway import Underway

OUTPUT = TensorSpec(name="y", dtype="float32", shape=("batch",))


class Source:
    def __init__(self, rows: int) -> None:
        self.x = np.arange(rows, dtype=np.float32)
        self.reads: list[tuple[int, int]] = []
        self.hook: Callable[[int], None] = lambda start: None

    def read(self, start: int, stop: int) -> dict[str, np.ndarray[Any, Any]]:
        self.hook(start)
        self.reads.append((start, stop))
        return {"x": self.x[start:stop].copy()}


class Runner:
    artifact = SimpleNamespace(manifest=SimpleNamespace(monte_carlo=None, inputs=(), outputs=(), bounds={}))
    lanes = 1

    def __init__(self) -> None:
        self.hook: Callable[[int], None] = lambda start: None

    def release_memory(self) -> None: ...

    def predict(
        self, inputs: Any, *, sample_ids: Any, seed: Any, draws: Any, first_draw: Any
    ) -> dict[str, np.ndarray[Any, Any]]:
        self.hook(int(sample_ids[0]))
        return {"y": inputs["x"] * 2}


class Feed:
    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards, self.closed = list(shards), False

    def next(self) -> Shard | None:
        return self.shards.pop(0) if self.shards and not self.closed else None

    def peek(self) -> Shard | None:
        return self.shards[0] if self.shards and not self.closed else None

    def close(self) -> None:
        self.closed = True


class Listener:
    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.warnings: list[str] = []

    def started(self, shard: Shard) -> None:
        self.events.append(("started", shard.index))

    def predicted(self, rows: int) -> None:
        self.events.append(("predicted", rows))

    def committed(self, commit: Commit) -> None:
        self.events.append(("committed", commit.shard))

    def warned(self, text: str) -> None:
        self.warnings.append(text)


class Case:
    def __init__(
        self,
        path: Path,
        plan: Plan,
        *,
        nan: Any = "error",
        on_error: Any = "fail",
        lanes: int = 1,
        source: type[Source] = Source,
    ) -> None:
        job = Job(
            artifact="a", artifact_path="a", format="onnx", data={}, data_source="d", seed=None, draws=None,
            plan=plan, outputs=(OUTPUT,), writer="npy", write_interval="batch", nan=nan, version="0", created="now",
            on_error=on_error,
        )  # fmt: skip
        self.directory = RunDirectory.prepare(path, job)
        self.source, self.runner, self.listener, self.meter = source(plan.rows), Runner(), Listener(), Meter()
        self.runner.lanes = lanes
        self.writer = make_writer("npy", (OUTPUT,))
        self.feed = Feed(list(plan.shards()))
        task = Task(
            runner=self.runner,  # type: ignore[arg-type]
            source=self.source,  # type: ignore[arg-type]
            directory=self.directory,
            writer=self.writer,
        )
        self.pipeline = Pipeline(task, self.feed, self.listener, self.meter)

    def values(self) -> np.ndarray[Any, Any]:
        paths = sorted(self.directory.parts.glob("part-*"))
        return np.concatenate([np.load(path) for path in paths]) if paths else np.empty(0, [("sample_id", "i8")])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 4))
def test_every_row_once_whatever_the_sizes(tmp_path_factory: Any, rows: int, batch: int, batches: int) -> None:
    case = Case(tmp_path_factory.mktemp("run") / "r", Plan(rows=rows, shard_rows=batch * batches, batch_size=batch))
    case.pipeline.run()
    found = case.values()
    assert found["sample_id"].tolist() == list(range(rows))
    if rows:
        assert found["y"].tolist() == [2.0 * i for i in range(rows)]
    assert case.directory.missing() == []
    assert all(start // (batch * batches) == (stop - 1) // (batch * batches) for start, stop in case.source.reads)
    assert case.meter.rows == rows
    assert sum(n for kind, n in case.listener.events if kind == "predicted") == rows


def test_the_pipeline_is_not_drained_between_shards(tmp_path: Path) -> None:
    """While the first shard's file is still being closed, batches of the next are already predicted."""
    case = Case(tmp_path / "r", Plan(rows=8, shard_rows=2, batch_size=1))
    predicted_beyond = threading.Event()
    case.runner.hook = lambda start: predicted_beyond.set() if start >= 2 else None
    write = case.writer.write

    def slow(path: Path, batches: Iterator[Batch], rows: int) -> None:
        write(path, batches, rows)
        assert predicted_beyond.wait(5)

    case.writer.write = slow  # type: ignore[method-assign]
    case.pipeline.run()
    assert case.directory.missing() == []


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_stop_finishes_the_shard_in_work_and_none_that_was_read_ahead(tmp_path: Path, lanes: int) -> None:
    case = Case(tmp_path / "r", Plan(rows=24, shard_rows=6, batch_size=1), lanes=lanes)
    read = threading.Event()
    case.source.hook = lambda start: read.set() if start >= 12 else None

    def stop(start: int) -> None:
        if start == 2:
            assert read.wait(5)
            case.pipeline.finish()

    case.runner.hook = stop
    case.pipeline.run()
    assert case.values()["sample_id"].tolist() == list(range(6))
    assert [shard.index for shard in case.directory.missing()] == [1, 2, 3]


def test_a_stop_before_the_first_batch_finishes_the_shard_that_is_read(tmp_path: Path) -> None:
    case = Case(tmp_path / "r", Plan(rows=8, shard_rows=2, batch_size=1))
    case.source.hook = lambda _: case.pipeline.finish()
    case.pipeline.run()
    assert case.values()["sample_id"].tolist() == [0, 1]


def test_the_next_batch_is_read_while_one_is_predicted(tmp_path: Path) -> None:
    case = Case(tmp_path / "r", Plan(rows=40, shard_rows=40, batch_size=1))
    begun = [threading.Event() for _ in range(41)]
    begun[40].set()
    case.source.hook = lambda start: begun[start].set()
    overlapped: list[bool] = []
    case.runner.hook = lambda start: overlapped.append(begun[start + 1].wait(5))
    case.pipeline.run()
    assert overlapped == [True] * 40


def test_where_the_time_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part has the time of its own thread and no other's; what a thread waited is none of its work."""
    monkeypatch.setattr(loop, "DEPTH", 1)
    case = Case(tmp_path / "r", Plan(rows=12, shard_rows=4, batch_size=1))
    case.source.hook = lambda _: time.sleep(0.02)
    case.runner.hook = lambda _: time.sleep(0.005)
    write = case.writer.write

    def slow(path: Path, batches: Iterator[Batch], rows: int) -> None:
        write(path, batches, rows)
        time.sleep(0.05)

    case.writer.write = slow  # type: ignore[method-assign]
    began = time.perf_counter()
    case.pipeline.run()
    seconds, meter = time.perf_counter() - began, case.meter
    assert 12 * 0.02 <= meter.read_s <= seconds
    assert meter.infer_s >= 12 * 0.005
    assert meter.wait_input_s >= 0
    assert meter.wait_output_s >= 0
    assert meter.infer_s + meter.wait_input_s + meter.wait_output_s <= seconds
    assert 3 * 0.05 <= meter.write_s <= seconds - case.pipeline._outputs.get_wait_s


def test_queues_are_bounded(tmp_path: Path) -> None:
    case = Case(tmp_path / "r", Plan(rows=200, shard_rows=200, batch_size=1))
    most = 0

    def slow(start: int) -> None:
        nonlocal most
        time.sleep(0.0005)
        most = max(most, len(case.source.reads) - start)

    case.runner.hook = slow
    case.pipeline.run()
    assert loop.DEPTH // 2 <= most <= loop.DEPTH + 2


def fail_at(row: int, error: BaseException) -> Callable[[int], None]:
    def hook(start: int) -> None:
        if start == row:
            raise error

    return hook


@pytest.mark.parametrize("row", [0, 5, 19])
@pytest.mark.parametrize("where", ["source", "runner", "writer"])
def test_a_fault_in_any_thread_stops_all_and_is_raised(tmp_path: Path, where: str, row: int) -> None:
    case = Case(tmp_path / "r", Plan(rows=20, shard_rows=4, batch_size=1))
    if where == "writer":
        write = case.writer.write

        def broken(path: Path, batches: Iterator[Batch], rows: int) -> None:
            if f"{row // 4:06d}" in path.name:
                next(batches)
                raise RunError("broken writer")
            write(path, batches, rows)

        case.writer.write = broken  # type: ignore[method-assign]
    else:
        getattr(case, where).hook = fail_at(row, ValueError("broken"))
    before = set(threading.enumerate())
    with pytest.raises(RunError, match="broken") as caught:
        case.pipeline.run()
    assert set(threading.enumerate()) <= before, "no thread goes on, and none was given up waiting for"
    if where != "writer":
        assert f"row {row}: " in str(caught.value)
        assert isinstance(caught.value.__cause__, ValueError)
    whole = {shard.index for shard in case.directory.job.plan.shards()} - {s.index for s in case.directory.missing()}
    assert row // 4 not in whole
    if where != "source":
        assert whole == set(range(row // 4)), "what went through the model before is written"
    assert not list(case.directory.parts.glob(".tmp*")), "nothing half-written is left"

    again = Case(tmp_path / "r", Plan(rows=20, shard_rows=4, batch_size=1))
    again.feed.shards = again.directory.missing()
    again.pipeline.run()
    assert again.values()["y"].tolist() == [2.0 * i for i in range(20)]


def breaking(case: Case, *, reading: int, while_predicting: int) -> list[int]:
    """Have a row not to be read while the model is at another one; gives the rows that the model gets, as they come."""
    begun, called = threading.Event(), list[int]()

    def break_at(start: int) -> None:
        if start == reading:
            assert begun.wait(5)
            raise OSError("broken")

    def wait_at(start: int) -> None:
        called.append(start)
        if start == while_predicting:
            begun.set()
            while not case.feed.closed:
                time.sleep(0.001)

    case.source.hook, case.runner.hook = break_at, wait_at
    return called


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_row_that_cannot_be_read_costs_no_shard_that_is_whole(tmp_path: Path, lanes: int) -> None:
    """The one in work is finished, those that wait are not begun, and rows of the broken one go no further."""
    case = Case(tmp_path / "r", Plan(rows=24, shard_rows=4, batch_size=1), lanes=lanes)
    called = breaking(case, reading=14, while_predicting=5)
    with pytest.raises(RunError, match="row 14: reading the data failed with OSError: broken"):
        case.pipeline.run()
    assert case.values()["sample_id"].tolist() == list(range(8))
    assert max(called) < 8 + lanes - 1


def test_an_error_of_what_gives_the_shards_costs_none_that_was_read(tmp_path: Path) -> None:
    case = Case(tmp_path / "r", Plan(rows=8, shard_rows=4, batch_size=1))
    begun, following = threading.Event(), case.feed.next

    def next_or_break() -> Shard | None:
        if len(case.feed.shards) == 1:
            assert begun.wait(5)
            raise OSError("the socket is gone")
        return following()

    def wait_at(start: int) -> None:
        begun.set()
        while start == 1 and not case.feed.closed:
            time.sleep(0.001)

    case.feed.next, case.runner.hook = next_or_break, wait_at  # type: ignore[method-assign]
    with pytest.raises(OSError, match="the socket is gone"):
        case.pipeline.run()
    assert case.values()["sample_id"].tolist() == [0, 1, 2, 3]


def test_where_the_shard_in_work_is_the_broken_one_no_more_of_it_is_predicted(tmp_path: Path) -> None:
    case = Case(tmp_path / "r", Plan(rows=16, shard_rows=16, batch_size=1))
    called = breaking(case, reading=9, while_predicting=2)
    with pytest.raises(RunError, match="row 9"):
        case.pipeline.run()
    assert called == [0, 1, 2]
    assert not case.values().size


def test_a_keyboard_interrupt_in_inference_leaves_nothing_hanging(tmp_path: Path) -> None:
    case = Case(tmp_path / "r", Plan(rows=20, shard_rows=4, batch_size=1))
    case.runner.hook = fail_at(9, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        case.pipeline.run()
    assert 2 in {shard.index for shard in case.directory.missing()}


def test_code_that_exits_in_any_thread_is_an_error(tmp_path: Path) -> None:
    for where in ("source", "runner"):
        case = Case(tmp_path / where, Plan(rows=20, shard_rows=4, batch_size=1))
        getattr(case, where).hook = fail_at(9, SystemExit(0))
        with pytest.raises(CodeExitedError, match=r"SystemExit: 0, raised at .*\.py:\d+\)"):
            case.pipeline.run()


@pytest.mark.parametrize("more", [-1, 1])
def test_a_source_that_gives_other_rows_than_asked_for_is_an_error(tmp_path: Path, more: int) -> None:
    class Other(Source):
        def read(self, start: int, stop: int) -> dict[str, np.ndarray[Any, Any]]:
            return {"x": self.x[start : stop + more]}

    case = Case(tmp_path / "r", Plan(rows=8, shard_rows=4, batch_size=2), source=Other)
    with pytest.raises(DataError, match=rf"rows 0 to 1: the source gave {2 + more} rows? of 'x'; its read"):
        case.pipeline.run()


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_source_may_fill_the_same_memory_again(tmp_path: Path, on_error: str) -> None:
    class Reusing(Source):
        room = np.zeros(4, np.float32)

        def read(self, start: int, stop: int) -> dict[str, np.ndarray[Any, Any]]:
            if start <= 5 < stop and on_error == "skip":
                raise ValueError("row 5")
            self.room[: stop - start] = self.x[start:stop]
            return {"x": self.room[: stop - start]}

    case = Case(tmp_path / "r", Plan(rows=16, shard_rows=8, batch_size=4), source=Reusing, on_error=on_error)
    case.pipeline.run()
    rows = [row for row in range(16) if row != 5 or on_error == "fail"]
    assert case.values()["y"].tolist() == [2.0 * row for row in rows]


def test_abandoning_stops_at_once_and_is_no_error(tmp_path: Path) -> None:
    case = Case(tmp_path / "r", Plan(rows=1000, shard_rows=500, batch_size=1))
    case.runner.hook = lambda start: case.pipeline.abandon() if start == 7 else None
    case.pipeline.run()
    assert case.meter.rows <= 8
    assert len(case.directory.missing()) == 2


def test_closing_the_feed_finishes_what_was_begun(tmp_path: Path) -> None:
    case = Case(tmp_path / "r", Plan(rows=100, shard_rows=20, batch_size=1))
    case.runner.hook = lambda start: case.feed.close() if start == 3 else None
    case.pipeline.run()
    assert [shard.index for shard in case.directory.missing()] == [1, 2, 3, 4]


def test_a_reader_that_hangs_does_not_hold_up_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "READER_PATIENCE_S", 0.05)
    case = Case(tmp_path / "r", Plan(rows=10, shard_rows=10, batch_size=1))
    release = threading.Event()
    case.source.hook = lambda start: release.wait(20) and None if start == 4 else None
    case.runner.hook = fail_at(2, ValueError("broken"))
    with pytest.raises(RunError, match="broken"):
        case.pipeline.run()
    release.set()


def test_the_first_error_is_raised_and_none_that_follows_from_it(tmp_path: Path) -> None:
    case = Case(tmp_path / "r", Plan(rows=20, shard_rows=20, batch_size=1))
    case.runner.hook = fail_at(2, ValueError("first"))

    def later(start: int) -> None:
        if start == 3:
            while not case.feed.closed:
                time.sleep(0.001)
            raise ValueError("second")

    case.source.hook = later
    with pytest.raises(RunError, match="row 2: the model failed with ValueError: first"):
        case.pipeline.run()


@pytest.mark.parametrize("nan", ["error", "allow"])
def test_nan_policy(tmp_path: Path, nan: str) -> None:
    case = Case(tmp_path / "r", Plan(rows=20, shard_rows=4, batch_size=2), nan=nan)
    case.source.x[[9, 12, 13]] = np.nan
    if nan == "allow":
        case.pipeline.run()
        assert case.meter.nan_rows == 3
        assert np.isnan(case.values()["y"]).sum() == 3
        return
    with pytest.raises(DataError, match=r"input 'x', row 9.*NaN.*--nan allow"):
        case.pipeline.run()


def test_commits_carry_timings(tmp_path: Path) -> None:
    case = Case(tmp_path / "r", Plan(rows=6, shard_rows=3, batch_size=1))
    case.source.hook = case.runner.hook = lambda _: time.sleep(0.002)
    case.pipeline.run()
    commits = case.directory.state().parts
    assert len(commits) == 2
    for commit in commits.values():
        assert set(commit.timings) == {"read_s", "infer_s", "write_s"}
        assert commit.timings["infer_s"] > 0.005
        assert commit.timings["read_s"] > 0.005


def test_small_batches_reach_the_writer_joined_and_always_in_the_same_cuts(tmp_path: Path) -> None:
    cuts: list[list[list[int]]] = []
    for name in ("a", "b"):
        case = Case(tmp_path / name, Plan(rows=100_000, shard_rows=60_000, batch_size=1_000))
        seen: list[list[int]] = []
        write = case.writer.write

        def spy(path: Path, batches: Iterator[Batch], rows: int, write: Any = write, seen: Any = seen) -> None:
            write(path, (seen.append([int(b.sample_ids[0]), len(b)]) or b for b in batches), rows)

        case.writer.write = spy  # type: ignore[method-assign]
        case.pipeline.run()
        cuts.append(seen)
        assert case.values()["sample_id"].tolist() == list(range(100_000))
    assert cuts[0] == cuts[1]
    assert len(cuts[0]) < 10


def test_rows_that_are_computed_again_are_told_once() -> None:
    told: list[int] = []
    underway = Underway(told.append)
    for _ in range(2):
        underway.begin(10)
        for rows in (4, 0, 4, 4):  # The last four did not fit, and are computed in two calls.
            underway.advance(rows)
        underway.end()
    assert told == [4, 0, 4, 2, 0] * 2
