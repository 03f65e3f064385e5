"""The choice of a batch size, on devices of which the speed is known, and in a run."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import RunError, UsageError
from deploykit.plan import Plan
from deploykit.runs.rundir import RunDirectory
from runners.job import run
from runners.pipeline.batchsize import GOOD_SHARE, Probe, find_plateau, settle_batch_size
from runners.system.room import Room
from tests import handmade


class Device:
    """A call of n rows takes ``call_s + n * row_s`` seconds, and ``slow`` times as long beyond the cache."""

    def __init__(self, call_s: float, row_s: float, *, cache: int = 10**9, memory: int = 10**9) -> None:
        self.call_s, self.row_s, self.cache, self.memory = call_s, row_s, cache, memory
        self.now, self.released = 0.0, 0

    def seconds(self, rows: int) -> float:
        return self.call_s + rows * self.row_s * (3 if rows > self.cache else 1)

    def call(self, rows: int) -> None:
        if rows > self.memory:
            raise MemoryError
        self.now += self.seconds(rows)

    def release(self) -> None:
        self.released += 1

    def clock(self) -> float:
        return self.now


SIZES = [1 << power for power in range(13)]


@given(
    st.floats(1e-5, 1e-2), st.floats(1e-7, 1e-3), st.sampled_from([32, 256, 10**9]), st.sampled_from([48, 700, 10**9])
)
def test_the_smallest_size_at_the_plateau(call_s: float, row_s: float, cache: int, memory: int) -> None:
    device = Device(call_s, row_s, cache=cache, memory=memory)
    probe = find_plateau(device.call, SIZES, release=device.release, clock=device.clock)
    seen = {size: size / device.seconds(size) for size in probe.rows_per_s}
    assert probe.rows_per_s == pytest.approx(seen)
    good = [size for size, rate in seen.items() if rate >= GOOD_SHARE * max(seen.values())]
    assert probe.size == min(good)
    assert probe.size <= memory
    if probe.too_large is not None:
        assert probe.too_large == 2 * max(probe.rows_per_s) > memory
        assert device.released == 1
        assert f"{probe.too_large} rows did not fit into memory" in str(probe)
    assert device.now < 60, "a short probe"


def test_nothing_goes_through() -> None:
    with pytest.raises(UsageError, match="1 row failed already"):
        find_plateau(Device(1, 1, memory=0).call, SIZES)


def test_a_row_that_fails_ends_the_search_and_is_left_to_the_run() -> None:
    device = Device(1e-3, 1e-6)

    def call(rows: int) -> None:
        if rows > 20:
            raise ValueError("row 20 is bad")
        device.call(rows)

    assert find_plateau(call, SIZES, clock=device.clock).size == 16


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", handmade.random_inputs("mc", 300)["x"])
    return tmp_path / "x.npy"


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_a_resumed_run_takes_the_recorded_size(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path, runner: str
) -> None:
    def go() -> Callable[[str], bool]:
        found = run(artifact_paths["mc"], data, tmp_path / "r", runner=runner, batch_size="auto", devices="cpu")
        return lambda text: any(text in note for note in found.notes)

    said = go()
    size = RunDirectory.open(tmp_path / "r").job.plan.batch_size
    assert size & (size - 1) == 0
    assert size <= 256
    assert said(f"batch size {size} chosen, rows per second at 1: ")
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["batch_size"] == size
    assert any("chosen" in note for note in report["notes"])
    (tmp_path / "r" / "commits" / "part-000000.json").unlink()
    assert go()(f"batch size {size}, as run.json records it")


def test_few_rows_are_enough_for_all_ranks(artifact_paths: dict[str, Path], data: Path, tmp_path: Path) -> None:
    run(artifact_paths["mc"], data, tmp_path / "r", devices="cpu")
    plan = RunDirectory.open(tmp_path / "r").job.plan
    assert plan.batch_size == 4, "256 rows would be a batch of nearly all"
    assert len(plan) >= 8


def test_a_run_is_taken_up_with_the_batches_it_has(artifact_paths: dict[str, Path], data: Path, tmp_path: Path) -> None:
    run(artifact_paths["mc"], data, tmp_path / "r", devices="cpu", batch_size=64)
    (tmp_path / "r" / "commits" / "part-000000.json").unlink()
    assert run(artifact_paths["mc"], data, tmp_path / "r", devices="cpu").computed_rows == 64
    with pytest.raises(RunError, match="batch_size"):
        run(artifact_paths["mc"], data, tmp_path / "r", devices="cpu", batch_size=4)


def settled(
    asked: Any, held: Plan | None = None, *, rows: int = 1000, shard_rows: int | None = None, **ends: int
) -> Any:
    model: Any = SimpleNamespace(bounds={"batch": ends}, batch_dimension="batch")
    found = Probe(size=7, rows_per_s={}, too_large=None)
    return settle_batch_size(asked, held, lambda: found, rows=rows, shard_rows=shard_rows, manifest=model)[0]


@pytest.mark.parametrize(
    ("ends", "rows", "size"),
    [
        ({}, 0, 1), ({}, 127, 1), ({}, 1000, 8), ({}, 10**7, 256), ({"max": 5}, 1000, 5), ({"max": 99}, 10**7, 99),
        # The last batch of 8 of 1,001 rows would have one.
        ({"min": 2}, 1001, 256),
    ],
)  # fmt: skip
def test_the_usual_size_is_one_that_the_model_allows(ends: dict[str, int], rows: int, size: int) -> None:
    assert settled(None, rows=rows, **ends) == size


@pytest.mark.parametrize(("shard_rows", "size"), [(96, 8), (100, 5), (7, 7), (1, 1), (11, 8), (0, 1)])
def test_the_usual_size_divides_a_shard_where_one_nearly_as_large_does(shard_rows: int, size: int) -> None:
    assert settled(None, shard_rows=shard_rows) == size


def test_a_run_keeps_its_size_where_none_is_asked_for() -> None:
    held = Plan(rows=1000, shard_rows=128, batch_size=64)
    assert [settled(asked, held) for asked in (None, "auto", 16)] == [64, 64, 16]
    assert settled(None, held, max=9) == 64, "of another model, which is refused as such"
    assert settled("auto") == 7


def test_a_size_that_the_model_does_not_allow_is_refused() -> None:
    with pytest.raises(UsageError, match=r"batch size 100: .*at most 99; give another --batch-size"):
        settled(100, max=99)


def test_shards_that_were_asked_for_stay_whole(artifact_paths: dict[str, Path], data: Path, tmp_path: Path) -> None:
    run(artifact_paths["plain"], data, tmp_path / "r", batch_size="auto", shard_rows=12, devices="cpu")
    assert RunDirectory.open(tmp_path / "r").job.plan.batch_size in {1, 2, 4}


def test_no_rows(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.empty((0, 4), np.float32))
    result = run(artifact_paths["plain"], tmp_path / "x.npy", tmp_path / "r", batch_size="auto", devices="cpu")
    assert "no rows to try" in result.notes[0]


@given(st.sampled_from(SIZES), st.floats(2, 10))
def test_one_call_that_was_quick_by_chance_leaves_no_size_out(lucky: int, times: float) -> None:
    device, calls = Device(1e-3, 1e-5), dict.fromkeys(SIZES, 0)

    def call(rows: int) -> None:
        calls[rows] += 1
        device.now += device.seconds(rows) / (times if rows == lucky and calls[rows] == 2 else 1)

    probe = find_plateau(call, SIZES, clock=device.clock)
    tried = {size: size / device.seconds(size) for size in probe.rows_per_s}
    assert probe.size == min(size for size, rate in tried.items() if rate >= GOOD_SHARE * max(tried.values()))


@given(
    st.integers(10**7, 10**9),
    st.integers(0, 10**8),
    st.integers(1, 10**7),
    st.integers(1, 8),
    st.integers(10**8, 10**11),
)
def test_no_size_is_tried_that_a_rank_has_no_memory_for(
    before: int, once: int, row: int, ranks: int, available: int
) -> None:
    """In a container, nothing could be caught any more."""
    peaks = [before]
    room = Room(ranks, available=lambda: available, peak=lambda: peaks[-1])
    device, tried = Device(0, 4e-4), set()

    def needed(rows: int) -> int:
        return before + once + rows * row

    def call(rows: int) -> None:
        room.require(rows)
        tried.add(rows)
        device.call(rows)
        peaks.append(max(peaks[-1], needed(rows)))
        room.took(rows)

    probe = find_plateau(call, SIZES, clock=device.clock)
    # Of one row and of two nothing is known before.
    foreseen = [size for size in SIZES if size > 2 and needed(size) <= 0.8 * available / ranks * (1 + 1e-9)]
    assert tried == {1, 2, *foreseen}
    assert probe.too_large == next((size for size in SIZES if size not in tried), None)


def test_where_nobody_knows_the_memory_every_size_is_tried() -> None:
    room = Room(1, available=lambda: None, peak=lambda: 10**18)
    for size in SIZES:
        room.require(size)
        room.took(size)


def test_a_size_that_would_not_fit_is_told(
    artifact_paths: dict[str, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = itertools.count(0, 10**9)
    monkeypatch.setattr(
        "runners.pipeline.batchsize.Room",
        lambda ranks: Room(ranks, available=lambda: 4 * 10**9 * ranks, peak=lambda: next(grown)),
    )
    found = run(artifact_paths["mc"], data, tmp_path / "r", batch_size="auto", devices="cpu")
    assert any("rows did not fit into memory" in note for note in found.notes)
