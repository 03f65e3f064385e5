"""A rank of the engine ray as its actor has it, but in a thread of this process; Ray itself is not there."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import deploykit
from deploykit.artifact import Artifact
from deploykit.devices import Device
from deploykit.errors import DataError, RunError
from deploykit.plan import Shard
from deploykit.storage.stores import Store
from runners import mirror
from runners.engines import ray_rank
from runners.engines.ray_rank import Home, RayRank
from runners.engines.shipping import packed_bytes
from runners.ranks.assignment import Assignment

SIZE: dict[str, Any] = {"batch_size": 4, "shard_rows": 8, "engine": "local"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rank prints and where it works stay those of this process."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(ray_rank, "_redirect", lambda log: log.parent.mkdir(exist_ok=True))
    monkeypatch.setattr(ray_rank, "_settle", lambda _: None)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    np.save(tmp_path / "rows.npy", np.zeros((64, 4), np.float32))
    return tmp_path / "rows.npy"


def placed(artifact_path: Path, data: Path, directory: Path, place: str = "") -> RayRank:
    """Rank 3 of the job in the directory."""
    assignment = Assignment(
        artifact="", data=str(data), directory=str(directory), runner="onnx", rank=3, device=Device(kind="cpu"),
        threads=1, group=None, origin_s=0.0, place=place,
    )  # fmt: skip
    with Artifact.open(artifact_path) as artifact:
        home = Home(began=time.time(), folder="", path=[], digest=artifact.digest)
        return RayRank(assignment, home, packed_bytes(artifact))


def test_what_is_not_on_its_machine_is_told_with_the_machine(
    artifact_paths: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    deploykit.run(artifact_paths["mc"], rows, tmp_path / "run", **SIZE)
    rows.unlink()
    error = placed(artifact_paths["mc"], rows, tmp_path / "run").ready()["error"]
    assert error["type"] == "DataError"
    assert error["message"].startswith(f"{ray_rank.where(3)}: data {rows}: no such file")
    assert error["message"].endswith("share, or at a URL that all reach")


def test_a_store_that_does_not_answer_is_told_with_the_next_shard(
    artifact_paths: dict[str, Path], rows: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = deploykit.run(artifact_paths["mc"], rows, tmp_path / "run", **SIZE)
    fsspec.filesystem("s3").put_file(f"{run.path}/run.json", f"{bucket}/run.json")
    monkeypatch.setattr(mirror, "PERIOD_S", 0.01)
    rank, read = placed(artifact_paths["mc"], rows, tmp_path / "none", bucket), Store.read

    def failing(*_: Any) -> None:
        raise RunError("the network is down")

    assert rank.ready() == {}
    assert rank.compute(Shard(index=0, start=0, stop=8)) == {"note": ""}
    monkeypatch.setattr(Store, "read", failing)  # It is asked each time whose job is there.
    wait_for(lambda: rank._courier.failing)
    assert rank.compute(Shard(index=1, start=8, stop=16)) == {"note": "the network is down"}
    monkeypatch.setattr(Store, "read", read)
    wait_for(lambda: not rank._courier.failing)
    assert rank.end()["meter"]["rows"] == 16


def test_a_rank_that_comes_late_leaves_nothing(
    artifact_paths: dict[str, Path], rows: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, store = deploykit.run(artifact_paths["mc"], rows, tmp_path / "run", **SIZE), fsspec.filesystem("s3")
    store.put_file(f"{run.path}/run.json", f"{bucket}/run.json")
    monkeypatch.setattr(mirror, "PERIOD_S", 0.01)
    is_over = threading.Event()

    def late(*_: Any, **__: Any) -> None:
        is_over.wait(60)
        raise DataError("nobody hears it")

    monkeypatch.setattr(Assignment, "open", late)
    rank = placed(artifact_paths["mc"], rows, tmp_path / "none", bucket)
    wait_for(lambda: signs(bucket))
    rank.leave()
    try:
        assert signs(bucket) == []
        assert not rank._courier.copy.parent.exists()
    finally:
        is_over.set()
        rank._thread.join()


def test_a_rank_that_has_computed_something_does_not_leave_it(
    artifact_paths: dict[str, Path], rows: Path, tmp_path: Path, bucket: str
) -> None:
    run, store = deploykit.run(artifact_paths["mc"], rows, tmp_path / "run", **SIZE), fsspec.filesystem("s3")
    store.put_file(f"{run.path}/run.json", f"{bucket}/run.json")
    rank = placed(artifact_paths["mc"], rows, tmp_path / "none", bucket)
    assert rank.compute(Shard(index=1, start=8, stop=16)) == {"note": ""}
    rank.leave()
    assert rank.end()["meter"]["rows"] == 8
    part = "parts/part-000001.npy"
    assert store.cat_file(f"{bucket}/{part}") == (tmp_path / "run" / part).read_bytes()


def signs(url: str) -> list[str]:
    store = fsspec.filesystem("s3")
    store.invalidate_cache()
    return list(store.find(f"{url}/status"))


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
