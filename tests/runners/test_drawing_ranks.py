"""Data that comes but once, under a launcher: one rank draws it, the others wait for it."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.runs.verify_run import verify_run
from deploykit.runs.watching import run_status
from runners.job import run
from tests import handmade

from . import streams
from .loaders import X
from .test_factories import FILE, rows_of
from .test_launched import Environment, as_rank, ended, free_port, indexed_job, parts, srun, start, torchrun, wait_for
from .test_spooling import times


def srun_per_node(rank: int, world_size: int) -> Environment:
    """Code that reads the number of ranks from a few variables of Slurm finds them all."""
    return srun(rank, world_size) | {"SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": str(world_size)}


STREAM = f"{Path(streams.__file__)}:stream"
ROWS = 60

TELLS_AT_ONCE = """
from runners import progress
progress.LINES_S = 0.0
from deploykit.cli import main
main()
"""


@pytest.fixture(autouse=True)
def _slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that ranks meet while the rows come."""
    monkeypatch.setenv("SLOW_S", "0.05")


def assert_whole(out: Path) -> None:
    """Every row is there once; that they are those of one drawing, their digests say."""
    assert verify_run(out).ok
    assert sorted(rows_of(out, "logits")) == list(range(ROWS))
    assert [path.name for path in (out / "spool").iterdir()] == ["spool.json"]


@pytest.mark.parametrize(
    ("engine", "environment"),
    [("torchrun", torchrun), pytest.param("slurm", srun, marks=pytest.mark.exhaustive), ("array", indexed_job)],
)
def test_one_rank_draws_and_the_others_wait(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path, engine: str,
    environment: Callable[[int, int], Environment],
) -> None:  # fmt: skip
    out = tmp_path / "r"
    ranks = [
        start(artifact_paths["plain"], out, environment(rank, 3), "--engine", engine, data=STREAM) for rank in range(3)
    ]
    texts = [ended(rank) for rank in ranks]
    assert times(drawn) == 1
    assert_whole(out)
    assert all("60 rows" in text for text in texts)
    assert "finished the job" in "".join(texts)
    late = start(artifact_paths["plain"], out, environment(1, 3), "--engine", engine, data=STREAM)
    ended(late)
    assert times(drawn) == 1


def test_ranks_that_meet(artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path) -> None:
    out, port = tmp_path / "r", free_port()
    options = ("--engine", "torchrun", "--runner", "torch")
    second = start(artifact_paths["plain"], out, torchrun(1, 2, port), *options, data=STREAM)
    wait_for(lambda: run_status(out).drawn_rows)
    first = start(artifact_paths["plain"], out, torchrun(0, 2, port), *options, data=STREAM)
    texts = [ended(first), ended(second)]
    assert times(drawn) == 1
    assert_whole(out)
    assert "60 rows read" in texts[1], "who draws says so"
    assert "the 60 rows that were drawn before are used" in texts[0]


def test_the_rank_that_draws_is_killed(artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path) -> None:
    out = tmp_path / "r"

    def rank(number: int) -> Any:
        return start(artifact_paths["plain"], out, indexed_job(number, 2), "--engine", "array", data=STREAM)

    first = rank(0)
    wait_for(lambda: run_status(out).drawn_rows)
    second = rank(1)
    wait_for(lambda: (run_status(out).drawn_rows or 0) > ROWS // 3)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert "1 of 2 ends" in ended(second)
    assert times(drawn) == 2
    before = parts(out)
    ended(rank(0))
    assert times(drawn) == 2
    assert_whole(out)
    assert {name: data for name, data in parts(out).items() if name in before} == before


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive), signal.SIGTERM])
def test_a_rank_that_waits_is_stopped(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path, number: signal.Signals
) -> None:
    out, gate = tmp_path / "r", tmp_path / "gate"

    def rank(number: int) -> Any:
        environment = {**indexed_job(number, 2), "GATE": str(gate)}
        return start(artifact_paths["plain"], out, environment, "--engine", "array", data=STREAM, code=TELLS_AT_ONCE)

    other = rank(1)
    wait_for(lambda: run_status(out).drawn_rows)
    waiting = rank(0)  # Of the ranks that wait it is the one that says how many rows have come.
    assert "rows read" in waiting.stderr.readline()
    waiting.send_signal(number)
    said = f"stopped by {number.name} while another rank draws the rows; start this rank again"
    assert said in ended(waiting, code=128 + number)
    gate.touch()
    assert "of 2 ends" in ended(other)
    assert times(drawn) == 1


def test_a_rank_of_another_job_that_waits_takes_nothing_from_this_one(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path
) -> None:
    out = tmp_path / "r"

    def rank(number: int, data: str) -> Any:
        return start(artifact_paths["plain"], out, indexed_job(number, 2), "--engine", "array", data=data)

    first = rank(0, STREAM)
    wait_for(lambda: run_status(out).drawn_rows)
    other = rank(1, f"{FILE}:shares")
    ended(first)
    assert "holds rows of streams.py:stream, drawn for another model, data or columns" in ended(other, code=1)
    ended(rank(1, STREAM))
    assert times(drawn) == 1
    assert_whole(out)


def test_an_error_of_the_iterable_is_each_ranks_own(
    artifact_paths: dict[str, Path], tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN_ROW", "17")
    out = tmp_path / "r"
    ranks = [
        start(artifact_paths["plain"], out, indexed_job(rank, 2), "--engine", "array", data=STREAM) for rank in range(2)
    ]
    for each in ranks:
        assert "row 17: the iterable: raised OSError: the connection was lost" in ended(each, code=1)
    assert list(out.iterdir()) == []
    assert times(drawn) == 2


@pytest.mark.parametrize("factory", ["share", "shares", "sampled", "LazyShare"])
@pytest.mark.parametrize("launcher", [torchrun, srun_per_node])
def test_code_that_splits_rows_by_rank_loses_none(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str,
    launcher: Callable[[int, int], Environment],
) -> None:  # fmt: skip
    for rank in (1, 0):
        environment = launcher(rank, 2)
        as_rank(monkeypatch, environment)
        run(artifact_paths["plain"], f"{FILE}:{factory}", tmp_path / "r", batch_size=4, shard_rows=8)
        assert os.environ | environment == os.environ
    found = rows_of(tmp_path / "r", "logits")
    wanted = handmade.expected("plain", {"x": X.numpy()})["logits"]
    np.testing.assert_allclose([found[row] for row in range(len(X))], wanted, rtol=1e-5, atol=1e-6)
