"""The engine ray with a run directory at a URL: the machines of the cluster share nothing but the store."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import deploykit
from deploykit.errors import DataError, IncompleteRunError
from runners.job import run
from tests.runners.test_ray import DIE, OPTIONS, SLOW, STORE_BYTES, data, two_nodes

pytestmark = pytest.mark.slow
RAY: dict[str, Any] = {**OPTIONS, "engine": "ray", "devices": "cpu:2"}


def files(url: str, *folders: str) -> dict[str, bytes]:
    filesystem, root = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    found = {path.removeprefix(root).lstrip("/"): path for path in filesystem.find(root)}
    return {name: filesystem.cat_file(path) for name, path in found.items() if name.startswith(folders or "")}


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranks have their temporary files."""
    return tmp_path_factory.mktemp("places")


@pytest.fixture(scope="module")
def cluster(_served: None, places: Path) -> Iterator[Any]:
    """Two nodes that reach the store; what a node is started with its ranks have, too."""
    with two_nodes(env_vars={"TMPDIR": str(places)}) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def whole(artifact_paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "r"
    run(artifact_paths["mc"], SLOW, path, engine="local", **OPTIONS)
    return {f"parts/{part.name}": part.read_bytes() for part in (path / "parts").iterdir()}


def left_in(places: Path) -> list[Path]:
    """Copies of run directories."""
    return [path for path in places.iterdir() if path.name.startswith("deploykit-") and "artifacts" not in path.name]


@pytest.mark.parametrize("interval", ["batch", "epoch"])
def test_two_nodes_leave_what_one_machine_leaves(
    artifact_paths: dict[str, Path], tmp_path: Path, bucket: str, whole: dict[str, bytes], cluster: Any, places: Path,
    interval: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source = data(tmp_path, meeting=2)
    result = run(artifact_paths["mc"], source, bucket, write_interval=interval, **RAY)
    assert (result.path, result.computed_rows, result.missing_shards) == (bucket, 64, 0)
    assert deploykit.verify(bucket).committed_rows == 64
    assert files(bucket, "parts/") == ({} if interval == "epoch" else whole)
    ranks = list(files(bucket, "predictions"))
    assert ranks == ([] if interval == "batch" else ["predictions_0.npy", "predictions_1.npy"])
    report = json.loads(files(bucket, "report.json")["report.json"])
    assert (report["complete"], sum(rank["rows"] for rank in report["ranks"])) == (True, 64)
    logs = files(bucket, "logs/")
    assert [name for name in logs if name.endswith("jsonl")] == ["logs/rank-0.jsonl", "logs/rank-1.jsonl"]
    assert b'"end"' in logs["logs/rank-0.jsonl"]
    status = deploykit.status(bucket)
    assert (status.state, [rank.state for rank in status.ranks]) == ("finished", ["ended", "ended"])
    assert left_in(places) == left_in(tmp_path) == []
    assert list(places.glob("deploykit-artifacts-*")), "the ranks have their temporary files elsewhere"
    assert not [name for name in files(bucket) if name.startswith(".")]
    local = run(artifact_paths["mc"], source, tmp_path / "run", engine="local", **OPTIONS)
    merged = [deploykit.merge(path, tmp_path / f"{n}.npz") for n, path in enumerate([bucket, local.path])]
    with np.load(merged[0]) as ours, np.load(merged[1]) as theirs:
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs.files)
    before = files(bucket, "parts/", "commits/", "predictions", "report")
    again = run(artifact_paths["mc"], source, bucket, write_interval=interval, **RAY)
    assert (again.computed_rows, "nothing was left to do" in again.notes[-1]) == (0, True)
    assert files(bucket, "parts/", "commits/", "predictions", "report") == before


def test_what_is_damaged_or_lost_is_computed_again(
    artifact_paths: dict[str, Path], tmp_path: Path, bucket: str, whole: dict[str, bytes], cluster: Any
) -> None:
    source = data(tmp_path)
    run(artifact_paths["mc"], source, bucket, engine="local", **OPTIONS)
    filesystem, root = fsspec.core.url_to_fs(bucket)
    damaged = {"parts/part-000002.npy": b"?", "parts/part-000003.npy": b""}
    for name, end in damaged.items():
        filesystem.pipe_file(f"{root}/{name}", whole[name][:-1] + end)
    filesystem.rm([f"{root}/parts/part-000004.npy", f"{root}/commits/part-000005.json"])
    result = run(artifact_paths["mc"], source, bucket, **RAY)
    assert (result.computed_rows, result.skipped_shards) == (32, 4)
    assert files(bucket, "parts/") == whole
    assert deploykit.verify(bucket).committed_rows == 64


def test_a_killed_rank_is_replaced_and_what_it_did_not_send_done_again(
    artifact_paths: dict[str, Path], tmp_path: Path, bucket: str, whole: dict[str, bytes], cluster: Any, places: Path
) -> None:
    """It commits some shards and is killed before it sends them."""
    marker = tmp_path / "marker"
    once = f"p = pathlib.Path({str(marker)!r}); e = p.exists(); p.touch(); e or os.kill(os.getpid(), 9)"
    result = run(artifact_paths["mc"], data(tmp_path, once, row=60), bucket, **{**RAY, "devices": "cpu"})
    assert marker.exists()
    (died,) = [note for note in result.notes if "died" in note]
    assert f"{bucket}/logs/rank-0.log" in died
    assert files(bucket, "parts/") == whole
    assert deploykit.verify(bucket).committed_rows == 64
    assert result.computed_rows == 64
    for path in left_in(places):
        assert len(list(path.glob("*/parts/*"))) < 8


def test_a_shard_that_kills_every_rank_is_left_and_said(
    artifact_paths: dict[str, Path], tmp_path: Path, bucket: str, whole: dict[str, bytes], cluster: Any
) -> None:
    with pytest.raises(IncompleteRunError, match=rf"7 of 8 parts are there; missing: rows 24 to 31.* -o {bucket}"):
        run(artifact_paths["mc"], data(tmp_path, DIE), bucket, **RAY)
    assert deploykit.status(bucket).done_rows == 56
    run(artifact_paths["mc"], data(tmp_path), bucket, engine="local", **OPTIONS)
    assert files(bucket, "parts/") == whole


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.exhaustive), (signal.SIGKILL, -9)]
)
def test_the_same_command_takes_up_what_was_stopped(
    artifact_paths: dict[str, Path], tmp_path: Path, bucket: str, whole: dict[str, bytes], cluster: Any,
    number: signal.Signals, code: int,
) -> None:  # fmt: skip
    marker = tmp_path / "marker"
    is_killed = number == signal.SIGKILL
    slow = data(tmp_path, f"pathlib.Path({str(marker)!r}).touch()", seconds=0.3 if is_killed else 0.05)
    command = [sys.executable, "-W", "error", "-m", "deploykit", "run", artifact_paths["mc"], "--data", slow]
    command += ["-o", bucket, "--engine", "ray", "--devices", "cpu:2", "--batch-size", "2", "--shard-rows", "8"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}

    def started() -> Any:
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    with started() as process:
        wait_for(lambda: files(bucket, "commits/part-") if is_killed else marker.exists())
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    if not is_killed:
        there = len(files(bucket, "commits/part-"))
        assert f"run directory {bucket}: stopped by {number.name}\n{there} of 8 parts are there" in err
    data(tmp_path)
    with started() as process:
        told, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    computed = re.search(r"(\d+) computed now", told)
    assert computed is not None
    assert int(computed[1]) < 64
    assert files(bucket, "parts/") == whole
    assert deploykit.verify(bucket).committed_rows == 64


def test_rows_that_fail_are_left_out(
    artifact_paths: dict[str, Path], tmp_path: Path, bucket: str, cluster: Any
) -> None:
    bad = data(tmp_path, "raise ValueError('this row is broken')")
    result = run(artifact_paths["mc"], bad, bucket, on_error="skip", **RAY)
    assert result.failed_rows == 1
    assert len(files(bucket, "failed.jsonl")["failed.jsonl"].splitlines()) == 1
    assert list(deploykit.verify(bucket).failed) == [27]


def test_an_error_in_the_data_comes_through_and_what_was_done_is_sent(
    artifact_paths: dict[str, Path], tmp_path: Path, bucket: str, cluster: Any, places: Path
) -> None:
    bad = data(tmp_path, "raise ValueError('this row is broken')", row=60)
    before = left_in(places)
    with pytest.raises(DataError, match="row 60: raised ValueError: this row is broken"):
        run(artifact_paths["mc"], bad, bucket, **RAY)
    assert deploykit.status(bucket).done_rows >= 48
    assert left_in(places) == before


@pytest.mark.exhaustive
def test_a_lost_node_costs_nothing(
    artifact_paths: dict[str, Path], tmp_path: Path, bucket: str, whole: dict[str, bytes], cluster: Any
) -> None:
    """The last on this cluster: Ray itself tells every later driver of the lost node, which would be taken for ours."""
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    cluster.wait_for_nodes()

    def pull_the_plug() -> None:
        wait_for(lambda: files(bucket, "commits/part-"))
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=pull_the_plug)
    thread.start()
    run(artifact_paths["mc"], data(tmp_path, seconds=0.1), bucket, **{**RAY, "devices": "cpu:3"})
    thread.join()
    assert files(bucket, "parts/") == whole
    assert deploykit.verify(bucket).committed_rows == 64
