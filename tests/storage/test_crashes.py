"""Killed at any line of deploykit, any number of times, a job ends with the bytes of an uninterrupted one."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.runs.epoch import is_finished
from deploykit.runs.job import WRITE_INTERVALS
from deploykit.runs.verify_run import check_run, verify_run

from .crash import Server
from .helpers import files_of, make_job, run_all


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def damage_some_file(path: Path, choice: random.Random) -> None:
    """Flip a byte of a prediction file, cut it short, or lose any file except run.json."""
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.name != "run.json")
    if not files:
        return
    file = choice.choice(files)
    how = choice.choice(["flip", "cut", "lose"] if file.suffix == ".npy" else ["lose", "cut"])
    data = bytearray(file.read_bytes())
    if how == "flip" and data:
        data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
        file.write_bytes(data)
    elif how == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        file.unlink()


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 23),
    batch_size=st.integers(1, 4),
    shard_batches=st.integers(1, 3),
    interval=st.sampled_from(WRITE_INTERVALS),
    ranks=st.integers(1, 3),
    kills=st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
def test_final_bytes(
    tmp_path_factory: Any, server: Server, rows: int, batch_size: int, shard_batches: int, interval: str, ranks: int,
    kills: list[tuple[float, bool, bool]], seed: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("crash")
    job = {"rows": rows, "batch_size": batch_size, "shard_rows": batch_size * shard_batches, "write_interval": interval}
    whole, broken = folder / "whole", folder / "broken"
    total = server.ask(job=job, path=str(whole), ranks=ranks, at=None, hard=False)["lines"]
    for moment, hard, damage in kills:
        at = 1 + int(moment * total)
        code = server.ask(job=job, path=str(broken), ranks=ranks, at=at, hard=hard)["code"]
        assert code in {0, 9}
        if damage:
            damage_some_file(broken, random.Random(seed))
        if (broken / "run.json").exists():
            check = check_run(broken)
            assert check.ok or check.missing or check.pending
            assert not check.duplicates
    directory = run_all(broken, make_job(**job), ranks=ranks)
    assert is_finished(directory)
    assert files_of(broken) == files_of(whole)
    check = verify_run(broken)
    assert (check.rows, check.committed_rows) == (rows, rows)
    shutil.rmtree(folder)


@pytest.mark.slow
def test_every_line_of_a_small_job(tmp_path: Path, server: Server) -> None:
    """Not sampled: every seventeenth line of a job with two ranks and epoch files, killed hard."""
    job = {"rows": 6, "batch_size": 2, "shard_rows": 2, "write_interval": "epoch"}
    whole = tmp_path / "whole"
    total = server.ask(job=job, path=str(whole), ranks=2, at=None, hard=False)["lines"]
    assert total > 300
    expected = files_of(whole)
    for at in range(1, total, 17):
        path = tmp_path / str(at)
        assert server.ask(job=job, path=str(path), ranks=2, at=at, hard=True)["code"] == 9
        assert server.ask(job=job, path=str(path), ranks=2, at=None, hard=True)["code"] == 0
        assert files_of(path) == expected, at
