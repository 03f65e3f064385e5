"""A runner that takes several batches at the same time: same order, same files, and faults in any lane."""

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.errors import RunError
from deploykit.plan import Plan
from runners.pipeline.channel import Closed
from runners.pipeline.lanes import Turns
from tests.runners.test_loop import Case, fail_at

some = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def digests(case: Case) -> list[str]:
    return [commit.part.sha256 for _, commit in sorted(case.directory.state().parts.items())]


@some
@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 4), st.integers(2, 4), st.randoms())
def test_the_files_are_those_of_one_lane(
    tmp_path_factory: Any, rows: int, batch: int, batches: int, lanes: int, chance: random.Random
) -> None:
    plan = Plan(rows=rows, shard_rows=batch * batches, batch_size=batch)
    one = Case(tmp_path_factory.mktemp("one") / "r", plan)
    one.pipeline.run()
    pauses = [chance.choice([0, 0, 0.002]) for _ in range(rows)]
    several = Case(tmp_path_factory.mktemp("several") / "r", plan, lanes=lanes)
    several.runner.hook = lambda start: time.sleep(pauses[start])
    several.pipeline.run()
    assert digests(several) == digests(one)
    assert several.meter.rows == rows
    if rows:
        assert several.values()["y"].tolist() == [2.0 * i for i in range(rows)]


def test_two_batches_are_in_work_at_the_same_time_and_the_time_is_counted_once(tmp_path: Path) -> None:
    case = Case(tmp_path / "r", Plan(rows=40, shard_rows=40, batch_size=1), lanes=2)
    met = threading.Barrier(2)
    seconds: list[float] = []

    def hook(start: int) -> None:
        met.wait(10)
        began = time.monotonic()
        time.sleep(0.01)
        seconds.append(time.monotonic() - began)

    case.runner.hook = hook
    case.pipeline.run()
    assert (case.meter.latency.percentile(50) or 0) > 9.9
    assert sum(seconds) / 2 * 0.95 < case.meter.infer_s < sum(seconds)
    (commit,) = case.directory.state().parts.values()
    assert commit.timings["infer_s"] == pytest.approx(case.meter.infer_s)


@pytest.mark.parametrize("row", [0, 5, 19])
def test_a_fault_in_any_lane_stops_all(tmp_path: Path, row: int) -> None:
    case = Case(tmp_path / "r", Plan(rows=20, shard_rows=4, batch_size=1), lanes=3)
    case.runner.hook = fail_at(row, ValueError("broken"))
    before = threading.active_count()
    with pytest.raises(RunError, match=f"row {row}: the model failed with ValueError: broken"):
        case.pipeline.run()
    assert threading.active_count() <= before
    assert row // 4 in {shard.index for shard in case.directory.missing()}


def test_abandoning_wakes_a_lane_that_waits_for_its_turn(tmp_path: Path) -> None:
    case = Case(tmp_path / "r", Plan(rows=20, shard_rows=20, batch_size=1), lanes=2)

    def hook(start: int) -> None:
        if start == 0:
            time.sleep(0.05)  # The other lane is done with row 1 by now.
            case.pipeline.abandon()

    case.runner.hook = hook
    case.pipeline.run()
    assert case.meter.rows == 0


def test_failed_rows_are_recorded_in_their_shard(tmp_path: Path) -> None:
    case = Case(tmp_path / "r", Plan(rows=60, shard_rows=20, batch_size=4), lanes=3, on_error="skip")

    def predict(inputs: Any, *, sample_ids: Any, **_: Any) -> Any:
        time.sleep(float(sample_ids[0] % 3) / 1000)
        if {7, 22, 59} & set(sample_ids.tolist()):
            raise ValueError("poison")
        return {"y": inputs["x"] * 2}

    case.runner.predict = predict  # type: ignore[method-assign]
    case.pipeline.run()
    assert sorted(case.directory.state().failed()) == [7, 22, 59]
    assert case.values()["sample_id"].tolist() == [row for row in range(60) if row not in (7, 22, 59)]


class Room:
    """Memory for so many rows, which all calls share; two calls that can meet do."""

    def __init__(self, rows: int) -> None:
        self.free, self._lock, self._met = rows, threading.Lock(), threading.Barrier(2)
        self.calls = 0

    def predict(self, inputs: Any, *, sample_ids: Any, **_: Any) -> Any:
        with self._lock:
            self.calls += 1
            first = self.calls <= 2
            fits = len(sample_ids) <= self.free
            self.free -= len(sample_ids) * fits
        try:
            if first:
                self._met.wait(10)
            if not fits:
                raise MemoryError("no room")
            return {"y": inputs["x"] * 2}
        finally:
            with self._lock:
                self.free += len(sample_ids) * fits


@pytest.mark.parametrize(
    ("room", "batch", "halvings"), [(1, 1, []), (8, 8, []), (12, 8, []), (16, 8, []), (6, 8, [8]), (3, 8, [8, 4])]
)
def test_a_batch_is_halved_only_where_it_does_not_fit_alone(
    tmp_path: Path, room: int, batch: int, halvings: list[int]
) -> None:
    case = Case(tmp_path / "r", Plan(rows=64, shard_rows=32, batch_size=batch), lanes=2)
    case.runner.predict = Room(room).predict  # type: ignore[method-assign]
    case.pipeline.run()
    assert case.meter.halvings == halvings
    together = room >= 2 * batch
    assert len(case.listener.warnings) == len(halvings) + (not together)
    assert any("one at a time" in text for text in case.listener.warnings) != together
    assert case.values()["y"].tolist() == [2.0 * i for i in range(64)]


def test_one_row_that_does_not_fit_alone_is_an_error(tmp_path: Path) -> None:
    case = Case(tmp_path / "r", Plan(rows=8, shard_rows=8, batch_size=1), lanes=2)
    case.runner.predict = Room(0).predict  # type: ignore[method-assign]
    with pytest.raises(RunError, match=r"^row 0: the model failed with MemoryError: no room"):
        case.pipeline.run()


def test_of_two_batches_that_fail_the_first_is_named(tmp_path: Path) -> None:
    case = Case(tmp_path / "r", Plan(rows=8, shard_rows=2, batch_size=2), lanes=3)
    failed = threading.Event()

    def hook(start: int) -> None:
        if start == 4:
            failed.set()
            raise ValueError("the later one")
        failed.wait(10)
        time.sleep(0.02)
        if start == 2:
            raise ValueError("the first one")

    case.runner.hook = hook
    with pytest.raises(RunError, match="rows 2 to 3: the model failed with ValueError: the first one"):
        case.pipeline.run()


def test_turns_come_in_the_order_of_taking() -> None:
    turns = Turns()
    first, _ = turns.take(lambda: "a")
    second, _ = turns.take(lambda: "b")
    seen: list[int] = []

    def later() -> None:
        with turns.of(second):
            seen.append(second)

    waiting = threading.Thread(target=later)
    waiting.start()
    time.sleep(0.01)
    assert seen == []
    with turns.of(first):
        seen.append(first)
    waiting.join(10)
    assert seen == [first, second]
    turns.close()
    third, _ = turns.take(lambda: "c")
    with pytest.raises(Closed), turns.of(third):
        raise AssertionError("a turn after the end")
