"""The workers of a DataLoader read for each rank: same rows, same errors, and none is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.errors import DataError
from deploykit.runs.verify_run import verify_run
from deploykit.sources import open_source
from runners.job import run
from tests import handmade

from . import loaders
from .test_factories import FILE, rows_of
from .test_launched import wait_for

OPTIONS: dict[str, Any] = {"batch_size": 4, "shard_rows": 8, "devices": "cpu"}
PATIENCE_S = 20


def seen(drawn: Path) -> list[list[str]]:
    """Row, process and whether it is a worker, of each read."""
    return [line.split() for line in drawn.read_text().splitlines() if not line.startswith("begin")]


def alive(pids: set[int]) -> set[int]:
    """Those that still run; a zombie does not."""
    found = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.add(pid)
    return found


def is_read(drawn: Path, row: int) -> bool:
    return str(row) in {each for each, _, _ in seen(drawn)}


def assert_none_left(drawn: Path) -> None:
    pids = {int(pid) for _, pid, is_worker in seen(drawn) if is_worker == "True"}
    assert pids
    deadline = time.monotonic() + PATIENCE_S
    while left := alive(pids):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("factory", "ranks", "workers"), [("watched", 1, 2), ("watched", 2, 4), ("watched_fresh", 1, 1)]
)
def test_each_rank_has_the_workers(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path, factory: str, ranks: int, workers: int
) -> None:
    result = run(
        artifact_paths["plain"],
        f"tests.runners.loaders:{factory}",
        tmp_path / "r",
        **{**OPTIONS, "devices": f"cpu:{ranks}"},
    )
    assert any(f"num_workers={workers // ranks}: each rank has so many processes" in note for note in result.notes)
    assert verify_run(tmp_path / "r").ok
    found = rows_of(tmp_path / "r", "logits")
    wanted = handmade.expected("plain", {"x": loaders.X.numpy()})["logits"]
    np.testing.assert_allclose([found[row] for row in range(60)], wanted, rtol=1e-5, atol=1e-6)
    reads = seen(drawn)
    # The fingerprint's four rows, two of them twice, and each rank's look at those between: by processes of their
    # own where the workers would be forked from this.
    here = {"watched": "True", "watched_fresh": "False"}[factory]
    rows = [0, 0, 59, 59, 19, 39] + (ranks if ranks > 1 else 0) * [19, 39]
    fingerprint = [(row, here) for row in rows]
    looks = len(rows) if factory == "watched" else 0
    assert Counter((int(row), is_worker) for row, _, is_worker in reads) == Counter(
        [*fingerprint, *((row, "True") for row in range(60))]
    )
    assert len({pid for _, pid, is_worker in reads if is_worker == "True"}) == workers + looks
    assert drawn.read_text().count("begin") == (0 if factory == "watched_fresh" else workers + looks)
    assert_none_left(drawn)


@pytest.mark.parametrize(
    ("devices", "batch_size"),
    [
        ("cpu", "auto"),
        ("cpu:2", 4),
        *(pytest.param(*each, marks=pytest.mark.exhaustive) for each in (("cpu", 4), ("cpu:2", "auto"))),
    ],
)
def test_what_a_dataset_opens_with_its_first_row_is_its_workers_own(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path, devices: str, batch_size: Any
) -> None:
    """Processes that are forked share the place in a file that was open before, and read each other's rows."""
    run(artifact_paths["plain"], f"{FILE}:opened_late", tmp_path / "r", devices=devices, batch_size=batch_size)
    assert verify_run(tmp_path / "r").ok
    assert_none_left(drawn)


def test_workers_that_cannot_import_a_file() -> None:
    with pytest.raises(DataError, match=r"starts its 1 workers by 'spawn'.*Watched.*name it as package.module"):
        open_source(f"{FILE}:watched_fresh", handmade.INPUTS["plain"])


def test_two_loaders_each_with_its_own(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    run(artifact_paths["pair"], f"{FILE}:watched_pair", tmp_path / "r", writer="pt", **OPTIONS)
    for row, output in rows_of(tmp_path / "r").items():
        np.testing.assert_array_equal(output, loaders.expected_pair(output, row))
        assert len(output) == 9 or row < 7


def test_reads_in_any_order_are_right(drawn: Path) -> None:
    """What was not announced, or comes out of turn, is read by the process itself."""
    source: Any = open_source(f"{FILE}:watched", handmade.INPUTS["plain"])
    try:
        source.expect([(0, 4), (4, 6), (6, 9)])
        for start, stop in ((0, 4), (1, 3), (4, 6), (50, 60), (6, 9), (6, 9)):
            np.testing.assert_array_equal(source.read(start, stop)["x"], loaders.X[start:stop].numpy(), strict=True)
        source.expect([(0, 60)])
        np.testing.assert_array_equal(source.read(0, 60)["x"], loaders.X.numpy())
    finally:
        source.close()
    assert_none_left(drawn)


def test_the_workers_go_on_over_the_end_of_an_announcement(drawn: Path) -> None:
    """They read rows of the second before the last of the first is taken; one that comes too late begins anew."""
    source: Any = open_source(f"{FILE}:watched", handmade.INPUTS["plain"])
    batches = [(start, start + 2) for start in range(0, 60, 2)]
    try:
        for first in (0, 10):
            one, other = batches[first : first + 5], batches[first + 5 : first + 10]
            source.expect(one)
            for number, (start, stop) in enumerate((*one, *other)):
                if len(one) - number == source.depth:
                    source.expect(other)
                if number == len(one) - 1:
                    wait_for(partial(is_read, drawn, other[0][0]))
                np.testing.assert_array_equal(source.read(start, stop)["x"], loaders.X[start:stop].numpy())
    finally:
        source.close()
    reads = [int(row) for row, _, is_worker in seen(drawn) if is_worker == "True"]
    assert sorted(reads) == list(range(40))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8)), max_size=6))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reads_are_right_however_announcements_and_reads_take_turns(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]]
) -> None:
    """Each step announces so many batches and then takes at most so many of those that wait."""
    log = tmp_path_factory.mktemp("log") / "drawn"
    log.touch()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DRAWN", str(log))
        source: Any = open_source(f"{FILE}:watched", handmade.INPUTS["plain"])
        try:
            waiting, row = [], 0
            for announced, taken in (*steps, (0, 60)):
                new = [(start, start + 1) for start in range(row, row + announced)]
                row += announced
                source.expect(new)
                waiting += new
                for start, stop in waiting[:taken]:
                    np.testing.assert_array_equal(source.read(start, stop)["x"], loaders.X[start:stop].numpy())
                waiting = waiting[taken:]
        finally:
            source.close()
    assert sorted(int(each) for each, _, is_worker in seen(log) if is_worker == "True") == list(range(row))


@pytest.mark.parametrize("devices", [pytest.param("cpu", marks=pytest.mark.exhaustive), "cpu:2"])
def test_an_error_in_a_worker_names_the_row(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch, devices: str
) -> None:
    monkeypatch.setenv("BROKEN_ROW", "42")
    options = {**OPTIONS, "devices": devices}
    with pytest.raises(DataError, match="row 42: raised OSError: this row is broken"):
        run(artifact_paths["plain"], f"{FILE}:watched", tmp_path / "r", **options)
    assert_none_left(drawn)
    result = run(artifact_paths["plain"], f"{FILE}:watched", tmp_path / "s", **options, on_error="skip")
    assert result.failed_rows == 1
    assert json.loads((tmp_path / "s" / "failed.jsonl").read_text())["sample_id"] == 42
    assert sorted(rows_of(tmp_path / "s", "logits")) == [row for row in range(60) if row != 42]


def test_an_error_that_only_a_worker_has_is_no_silent_fallback(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHY_ROW", "9")
    with pytest.raises(
        DataError, match=r"(?s)rows 8 to 11: read well here, but not in a reader process.*not in a worker"
    ):
        run(artifact_paths["plain"], f"{FILE}:watched", tmp_path / "r", **OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("on_error", [pytest.param("fail", marks=pytest.mark.exhaustive), "skip"])
def test_a_worker_that_is_killed(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch, on_error: str
) -> None:
    monkeypatch.setenv("DEADLY_ROW", "42")
    with pytest.raises(DataError, match=r"the reader processes of the DataLoader failed .*killed one") as caught:
        run(artifact_paths["plain"], f"{FILE}:watched", tmp_path / "r", **OPTIONS, on_error=on_error)
    loaders.assert_blamed(str(caught.value), 42, within=2 * 2 * 4)
    assert_none_left(drawn)
    monkeypatch.delenv("DEADLY_ROW")
    run(artifact_paths["plain"], f"{FILE}:watched", tmp_path / "r", **OPTIONS, on_error=on_error)
    assert verify_run(tmp_path / "r").ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "devices"),
    [
        (signal.SIGTERM, "cpu"),
        (signal.SIGINT, "cpu:2"),
        (signal.SIGKILL, "cpu:2"),
        *(pytest.param(number, "cpu", marks=pytest.mark.exhaustive) for number in (signal.SIGINT, signal.SIGKILL)),
    ],
)
def test_none_outlives_the_run(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path, number: signal.Signals, devices: str
) -> None:
    """Ctrl-C in a terminal goes to every process; the shards in work are finished, and the same command resumes."""
    words = ["run", str(artifact_paths["plain"]), "--data", f"{FILE}:watched", "-o", str(tmp_path / "r")]
    words += ["--batch-size", "4", "--shard-rows", "8", "--devices", devices]
    process = subprocess.Popen(
        [sys.executable, "-m", "deploykit", *words], env={**os.environ, "SLOW_S": "0.05"}, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE_S
    while len({row for row, _, is_worker in seen(drawn) if is_worker == "True"}) < 8:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), said
    assert_none_left(drawn)
    if number != signal.SIGKILL:
        assert "To resume, give the same command again" in said
        assert list((tmp_path / "r" / "parts").iterdir())
    run(artifact_paths["plain"], f"{FILE}:watched", tmp_path / "r", **{**OPTIONS, "devices": devices})
    assert verify_run(tmp_path / "r").ok
