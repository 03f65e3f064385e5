"""The engine ray on a cluster of two nodes in this machine: the same bytes, deaths of ranks and nodes, errors."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploykit.artifact import Artifact
from deploykit.errors import ArtifactError, DataError, DeviceError, IncompleteRunError, RunError, UsageError
from deploykit.plan import Shard
from deploykit.runs.verify_run import check_run, verify_run
from runners.engines import ray_cast, shipping
from runners.engines import ray_engine as engine_ray
from runners.engines.ray_cluster import require_answer
from runners.engines.shipping import packed_bytes, unpacked
from runners.exchange import Exchange
from runners.job import run
from runners.system.stop import stoppable

SLOW = f"{Path(__file__).parent / 'slowdata.py'}:make"
OPTIONS: dict[str, Any] = {"batch_size": 2, "shard_rows": 8, "runner": "onnx"}
STORE_BYTES = 100 * 2**20

DATA = """
import functools, os, pathlib, signal, time
import numpy as np
X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
@functools.cache
def is_rank():
    return "ray::" in pathlib.Path("/proc/self/cmdline").read_text()
@functools.cache
def meet():
    import ray
    here = pathlib.Path(__file__).parent
    (here / f"rank-{{os.getpid()}}.node").write_text(ray.get_runtime_context().get_node_id())
    deadline = time.monotonic() + 60
    while len(list(here.glob("rank-*.node"))) < {meeting} and time.monotonic() < deadline:
        time.sleep(0.02)
class Rows:
    def __len__(self):
        return 64
    def __getitem__(self, row):
        time.sleep({seconds})
        if {meeting} and row % 8 == 1 and is_rank():
            meet()
        if row == {row} and is_rank():
            {deed}
        return {{"x": X[row]}}
make = Rows
"""
DIE = "print('about to read it', flush=True); os.kill(os.getpid(), signal.SIGKILL)"


def data(folder: Path, deed: str = "pass", *, row: int = 27, seconds: float = 0.0, meeting: int = 0) -> str:
    """A data set that does a deed when a Ray actor reads a row; ranks that meet do so with a row they compute.

    That is the second of each shard of eight: others are read before, to compare the ranks' rows with each other.
    An actor does not see the environment of this process, so all of it is in the text.
    """
    (folder / "rows.py").write_text(DATA.format(deed=deed, row=row, seconds=seconds, meeting=meeting))
    return f"{folder / 'rows.py'}:make"


def parts(path: Path) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in (path / "parts").iterdir()}


@contextlib.contextmanager
def two_nodes(**node: Any) -> Iterator[Any]:
    """A cluster in this machine; ``node`` is what each of its nodes is started with besides."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES, **node}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def whole(artifact_paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "r"
    run(artifact_paths["mc"], SLOW, path, engine="local", **OPTIONS)
    return parts(path)


@pytest.mark.slow
def test_two_nodes_give_the_same_bytes(
    artifact_paths: dict[str, Path], tmp_path: Path, whole: dict[str, bytes], cluster: Any
) -> None:
    seen: list[tuple[int, int]] = []
    result = run(
        artifact_paths["mc"],
        data(tmp_path, meeting=2),
        tmp_path / "r",
        engine="ray",
        devices="cpu:2",
        progress=lambda *state: seen.append(state),
        **OPTIONS,
    )
    assert (result.computed_rows, result.missing_shards) == (64, 0)
    assert parts(tmp_path / "r") == whole
    assert verify_run(tmp_path / "r").ok
    assert seen[-1] == (64, 64)
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert [rank["died"] for rank in report["ranks"]] == [False, False]
    assert sum(rank["rows"] for rank in report["ranks"]) == 64
    nodes = {file.read_text() for file in tmp_path.glob("rank-*.node")}
    assert len(nodes) == 2
    assert report["batch_latency_ms"]["batches"] > 0


@pytest.mark.slow
def test_epoch_files_and_resume_under_other_engines(
    artifact_paths: dict[str, Path], tmp_path: Path, whole: dict[str, bytes], cluster: Any
) -> None:
    options = {**OPTIONS, "write_interval": "batch_and_epoch"}
    run(artifact_paths["mc"], SLOW, tmp_path / "r", engine="local", **options)
    for number in (1, 4):
        (tmp_path / "r" / "commits" / f"part-00000{number}.json").unlink()
    result = run(artifact_paths["mc"], SLOW, tmp_path / "r", engine="ray", devices="auto", **options)
    assert (result.computed_rows, result.skipped_shards) == (16, 6)
    assert parts(tmp_path / "r") == whole
    assert verify_run(tmp_path / "r").ok


@pytest.mark.slow
def test_a_killed_rank_is_replaced_and_its_shard_done_again(
    artifact_paths: dict[str, Path], tmp_path: Path, whole: dict[str, bytes], cluster: Any
) -> None:
    marker = tmp_path / "marker"
    once = f"p = pathlib.Path({str(marker)!r}); e = p.exists(); p.touch(); e or os.kill(os.getpid(), 9)"
    result = run(artifact_paths["mc"], data(tmp_path, once), tmp_path / "r", engine="ray", devices="cpu:2", **OPTIONS)
    assert marker.exists()
    assert "died" in result.notes[-1]
    assert parts(tmp_path / "r") == whole
    assert verify_run(tmp_path / "r").ok


@pytest.mark.slow
def test_a_shard_that_kills_every_rank_is_left_and_said(
    artifact_paths: dict[str, Path], tmp_path: Path, whole: dict[str, bytes], cluster: Any
) -> None:
    with pytest.raises(IncompleteRunError) as caught:
        run(artifact_paths["mc"], data(tmp_path, DIE), tmp_path / "r", engine="ray", devices="cpu:2", **OPTIONS)
    text = str(caught.value)
    assert "about to read it" in text
    assert "--engine ray" in text
    assert check_run(tmp_path / "r").missing == ((24, 32),)
    run(artifact_paths["mc"], data(tmp_path), tmp_path / "r", engine="local", **OPTIONS)
    assert parts(tmp_path / "r") == whole


class Ranks:
    """Two actors that have been at work for 10 s, and the hand that gives them shards; Ray itself is not there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows_done: tuple[int, int], shards: int) -> None:
        monkeypatch.setattr(ray_cast, "packed_bytes", lambda _: b"")
        self.shards = [Shard(index=index, start=100 * index, stop=100 * index + 100) for index in range(shards)]
        artifact = SimpleNamespace(digest="")
        work: Any = SimpleNamespace(artifact=artifact, shards=self.shards, done=0, assignments=[])
        setting: Any = SimpleNamespace(began_s=0.0, exchange=Exchange())
        self.cast = ray_cast.Cast(SimpleNamespace(put=lambda packed: packed), setting, work)
        compute = SimpleNamespace(remote=lambda shard: f"call {shard.index}")
        self.cast._actors = {rank: SimpleNamespace(rank=rank, compute=compute) for rank in range(2)}
        self.cast._ready = dict.fromkeys((0, 1), time.monotonic() - 10)
        self.cast._rows.update(dict(enumerate(rows_done)))

    def given(self, rank: int) -> list[int]:
        self.cast._hand_out()
        return [call.shard.index for call in self.cast._calls.values() if call.rank == rank and call.shard is not None]


@pytest.mark.parametrize("when", ["on the way", "connected"])
def test_a_signal_while_no_rank_is_there_is_no_exit_of_the_users_code(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Ray replaces the handler of SIGTERM by one that calls ``sys.exit``; that of the run is to hear it."""
    former, ended = signal.getsignal(signal.SIGTERM), []

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        if when == "on the way":
            signal.raise_signal(signal.SIGTERM)

    ray = SimpleNamespace(is_initialized=lambda: False, init=init, shutdown=lambda: ended.append(1))
    monkeypatch.setattr(engine_ray, "_ray", lambda: ray)
    try:
        with (
            pytest.raises(IncompleteRunError, match="directory r: stopped by SIGTERM before") as caught,
            stoppable("r", lambda: "before it began"),
            engine_ray.RayEngine(),
        ):
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.exit_code == 143
        assert len(ended) == (when == "connected")
        assert signal.getsignal(signal.SIGTERM) is former
    finally:
        signal.signal(signal.SIGTERM, former)


def test_the_last_shards_go_by_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(monkeypatch, (900, 100), 4)
    assert (ranks.given(0), ranks.given(1)) == ([0, 1], []), "the slow one would be waited for"
    assert [shard.index for shard in ranks.cast._waiting] == [2, 3]
    equal = Ranks(monkeypatch, (500, 500), 4)
    assert (equal.given(0), equal.given(1)) == ([0, 2], [1, 3])
    unknown = Ranks(monkeypatch, (900, 0), 4)
    assert unknown.given(1), "nothing is known of it"


@pytest.mark.parametrize(
    ("deaths", "error", "finishing"),
    [(0, None, False), (2, None, False), (0, RunError("broken"), False), (0, None, True)],
)
def test_a_death_is_one_death_however_many_calls_fail(
    monkeypatch: pytest.MonkeyPatch, deaths: int, error: RunError | None, finishing: bool
) -> None:
    """Another one takes its place only where there is work for it, and only then is that said."""
    ranks = Ranks(monkeypatch, (0, 0), 4)
    ranks.cast._barren[0], ranks.cast._error = deaths, error
    goes_on = error is None and not finishing
    ranks.cast._hand_out()
    killed: list[Any] = []
    started: list[int] = []

    def fail(_: Any) -> None:
        raise RuntimeError("the actor is dead")

    ranks.cast._ray = SimpleNamespace(
        get=fail, kill=killed.append, exceptions=SimpleNamespace(RayError=RuntimeError), available_resources=dict
    )
    dead, successor = ranks.cast._actors[0], SimpleNamespace()
    said: list[str] = []
    ranks.cast._work = SimpleNamespace(  # type: ignore[assignment]
        stop=SimpleNamespace(finishing=finishing), assignments=[SimpleNamespace(device="cpu")], logs=Path("nowhere"),
        progress=SimpleNamespace(say=said.append),
    )  # fmt: skip

    def start(_: Any) -> None:
        started.append(0)
        ranks.cast._actors[0] = successor

    monkeypatch.setattr(ranks.cast, "_start", start)
    calls = [answer for answer, call in ranks.cast._calls.items() if call.rank == 0]
    assert len(calls) == 2
    for answer in calls:
        ranks.cast._take(answer)
    died, is_replaced = "rank 0 on cpu died, the actor is dead", goes_on and deaths == 0
    assert killed == [dead]
    assert ranks.cast._deaths == [f"{died}; {Path('nowhere') / 'rank-0.log'} is empty"]
    assert said == [f"warning: {died}" + "; a new one takes its place where there is room" * is_replaced]
    assert started == [0] * is_replaced
    assert ranks.cast._actors.get(0) is (successor if is_replaced else None)
    assert sorted(shard.index for shard in ranks.cast._waiting) == [0, 2] * goes_on


@pytest.mark.parametrize("in_work", [False, True])
def test_a_rank_that_dies_when_all_is_done_is_not_replaced(monkeypatch: pytest.MonkeyPatch, in_work: bool) -> None:
    ranks = Ranks(monkeypatch, (100, 100), 1)
    cast, started, actors = ranks.cast, [], dict(ranks.cast._actors)
    cast._waiting.clear()

    def fail(_: Any) -> None:
        raise RuntimeError("the actor is dead")

    cast._ray = SimpleNamespace(get=fail, kill=lambda _: None, exceptions=SimpleNamespace(RayError=RuntimeError))
    cast._work = SimpleNamespace(  # type: ignore[assignment]
        stop=SimpleNamespace(finishing=False), assignments=[SimpleNamespace(device="cpu")], logs=Path("nowhere"),
        progress=SimpleNamespace(say=lambda _: None),
    )  # fmt: skip
    monkeypatch.setattr(cast, "_start", started.append)
    cast._calls = {"end": ray_cast._Call(what="end", rank=0, actor=actors[0])}
    if in_work:
        cast._calls["other"] = ray_cast._Call(what="compute", rank=1, actor=actors[1], shard=ranks.shards[0])
    cast._take("end")
    assert len(started) == in_work
    assert len(cast._deaths) == 1


@pytest.mark.parametrize("kind", ["RunError", "DataError"])
def test_a_successor_that_finds_no_store_is_one_more_death(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The first one has been ready; what is wrong with the data is an error at any time."""
    ranks = Ranks(monkeypatch, (0, 0), 4)
    cast, buried = ranks.cast, []
    answer = {"error": {"type": kind, "message": "no answer"}}
    cast._ray = SimpleNamespace(get=lambda _: answer, exceptions=SimpleNamespace(RayError=RuntimeError))
    monkeypatch.setattr(cast, "_bury", lambda call, error: buried.append((call.rank, str(error))))
    cast._calls = {"call": ray_cast._Call(what="ready", rank=0, actor=None)}
    cast._take("call")
    assert buried == ([(0, "no answer")] if kind == "RunError" else [])
    assert str(cast._error) == ("None" if buried else "no answer")
    del cast._rows[0]
    cast._calls = {"call": ray_cast._Call(what="ready", rank=0, actor=None)}
    cast._take("call")
    assert str(cast._error) == "no answer", "none has ever been ready there"


def test_what_each_rank_failed_with_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls of a rank answer with its error, and each may have kept what it could not send."""
    ranks, said = Ranks(monkeypatch, (0, 0), 4), []
    ranks.cast._hand_out()
    ranks.cast._work = SimpleNamespace(progress=SimpleNamespace(say=said.append))  # type: ignore[assignment]
    call_of = {answer: call.rank for answer, call in ranks.cast._calls.items()}
    ranks.cast._ray = SimpleNamespace(
        get=lambda answered: {"error": {"type": "RunError", "message": f"broken {call_of[answered]}"}},
        exceptions=SimpleNamespace(RayError=RuntimeError),
    )
    for answered in list(call_of):
        ranks.cast._take(answered)
    assert sorted(call_of.values()) == [0, 0, 1, 1]
    (first, second) = (0, 1) if call_of[next(iter(call_of))] == 0 else (1, 0)
    assert str(ranks.cast._error) == f"broken {first}"
    assert said == [f"warning: rank {second} failed, too: broken {second}"]


def test_what_a_dead_rank_did_not_send_is_given_out_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Once, however many of its calls fail; what it did send has been no try in vain."""
    ranks, said = Ranks(monkeypatch, (0, 0), 8), []
    cast, commits = ranks.cast, tmp_path / "commits"
    commits.mkdir()
    cast._work = SimpleNamespace(  # type: ignore[assignment]
        stop=SimpleNamespace(finishing=False), assignments=[SimpleNamespace(device="cpu")], logs=tmp_path / "logs",
        progress=SimpleNamespace(say=said.append),
    )  # fmt: skip
    looked: list[list[str]] = []

    def look(also: list[str]) -> None:
        looked.append(also)
        (commits / "part-000000.json").touch()

    monkeypatch.setattr(cast._exchange, "look", look)
    monkeypatch.setattr(cast, "_start", lambda _: None)
    answers: dict[Any, Any] = {}

    def get(answered: Any) -> Any:
        if answered not in answers:
            raise RuntimeError("the actor is dead")
        return {"note": "no answer"}

    cast._ray = SimpleNamespace(get=get, kill=lambda _: None, exceptions=SimpleNamespace(RayError=RuntimeError))
    for _ in range(2):
        answers |= dict.fromkeys(cast._calls)
        for answer in list(cast._calls):
            cast._take(answer)
        cast._hand_out()
    assert [[shard.index for shard in cast._told[rank]] for rank in range(2)] == [[0, 2], [1, 3]]
    assert cast._done == 400
    assert said == ["warning: no answer. The rank goes on, and tries again"] * 2, "once of each"
    cast._barren[0] = 2
    in_work = [answer for answer, call in cast._calls.items() if call.rank == 0]
    # One of its answers is heard after the death.
    late, answers[in_work[0]] = in_work[0], {}
    cast._take(in_work[1])
    assert looked == [["logs/rank-0.log"]]
    assert [shard.index for shard in cast._waiting] == [2, 6]
    assert (cast._done, cast._barren[0]) == (300, 1)
    cast._actors[0] = SimpleNamespace()
    cast._take(late)
    assert [shard.index for shard in cast._waiting] == [4, 2, 6]
    assert cast._done == 300


@pytest.mark.slow
def test_data_that_comes_but_once_is_drawn_here_and_read_there(
    artifact_paths: dict[str, Path], tmp_path: Path, cluster: Any
) -> None:
    (tmp_path / "once.py").write_text(
        "import numpy as np\nx = np.random.default_rng().normal(size=(64, 4)).astype(np.float32)\n"
        "def make():\n    return iter(x)\n"
    )
    result = run(
        artifact_paths["mc"], f"{tmp_path}/once.py:make", tmp_path / "r", engine="ray", devices="cpu:2", **OPTIONS
    )
    assert result.rows == 64
    assert verify_run(tmp_path / "r").ok


@pytest.mark.slow
def test_an_error_in_the_data_comes_through(artifact_paths: dict[str, Path], tmp_path: Path, cluster: Any) -> None:
    with pytest.raises(DataError, match="row 27: raised ValueError: this row is broken"):
        run(
            artifact_paths["mc"],
            data(tmp_path, "raise ValueError('this row is broken')"),
            tmp_path / "r",
            engine="ray",
            devices="cpu:2",
            **OPTIONS,
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "error", "text"),
    [
        ("cpu:9", DeviceError, r"the Ray cluster has \d CPUs"),
        ("cuda", DeviceError, "0 GPUs"),
        ("cuda:1", UsageError, "Ray chooses the devices itself"),
        ("tpu", UsageError, "expected auto, cpu"),
    ],
)
def test_devices_that_the_cluster_has_not(
    artifact_paths: dict[str, Path], tmp_path: Path, cluster: Any, devices: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        run(artifact_paths["mc"], SLOW, tmp_path / "r", engine="ray", devices=devices, **OPTIONS)
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_the_command_says_its_own_words_alone_and_ctrl_c_leaves_a_directory_to_resume(
    artifact_paths: dict[str, Path], tmp_path: Path, whole: dict[str, bytes], cluster: Any
) -> None:
    slow, out = data(tmp_path, seconds=0.05), tmp_path / "r"
    command = [sys.executable, "-W", "error", "-m", "deploykit", "run", artifact_paths["mc"], "--data", slow, "-o", out]
    command += ["--engine", "ray", "--devices", "cpu:2", "--batch-size", "2", "--shard-rows", "8"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}

    def started() -> Any:
        return subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
        )

    with started() as process:
        deadline = time.monotonic() + 60
        while not list(out.glob("commits/part-*.json")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped by SIGINT" in err
    assert 0 < check_run(out).committed_rows < 64
    with started() as process:
        told, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert [line.split(":")[0].split()[0] for line in told.splitlines()] == [str(out), "time", "next"]
    assert all("rows" in line for line in err.splitlines()), err
    assert parts(out) == whole


@pytest.mark.slow
def test_a_lost_node_costs_nothing(
    artifact_paths: dict[str, Path], tmp_path: Path, whole: dict[str, bytes], cluster: Any
) -> None:
    """The last on this cluster: Ray itself tells every later driver of the lost node, which would be taken for ours."""
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    cluster.wait_for_nodes()
    commits = tmp_path / "r" / "commits"

    def pull_the_plug() -> None:
        deadline = time.monotonic() + 60
        while not list(commits.glob("part-*.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=pull_the_plug)
    thread.start()
    run(artifact_paths["mc"], data(tmp_path, seconds=0.05), tmp_path / "r", engine="ray", devices="cpu:3", **OPTIONS)
    thread.join()
    assert parts(tmp_path / "r") == whole


@pytest.mark.slow
def test_a_cluster_is_made_and_ended_where_there_is_none(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((9, 4), np.float32))
    # Not the cluster of the other tests, which Ray would find.
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    command = ["-m", "deploykit", "run", artifact_paths["plain"], "--data", "x.npy", "-o", "r"]
    done = subprocess.run(
        [sys.executable, "-W", "error", *command, "--engine", "ray", "--devices", "cpu"],
        cwd=tmp_path, env=environment, text=True, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3, done.stdout
    assert all("rows" in line for line in done.stderr.splitlines()), done.stderr
    assert verify_run(tmp_path / "r").ok


def test_an_artifact_is_unpacked_once_and_checked(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Artifact.open(artifact_paths["mc"]) as artifact:
        packed, digest = packed_bytes(artifact), artifact.digest
    first = unpacked(packed, digest)
    assert first.digest == digest
    monkeypatch.setattr(shipping, "unpack", lambda *_: pytest.fail("unpacked again"))
    assert unpacked(packed, digest).directory == first.directory
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first.file("onnx").unlink()  # As a cleaner of old temporary files does.
    assert unpacked(packed, digest).file("onnx").is_file()
    assert [path.name for path in shipping.cache_folder().iterdir()] == [digest]
    with pytest.raises(ArtifactError, match="expected 000000"):
        unpacked(packed, "0" * 64)


def test_of_two_ranks_of_a_machine_one_unpacks(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the one that has looked first would remove what the other one has opened meanwhile."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Artifact.open(artifact_paths["mc"]) as artifact:
        packed, digest = packed_bytes(artifact), artifact.digest
    has_looked, other_is_done, times = threading.Event(), threading.Event(), []
    remove, unpack = shutil.rmtree, shipping.unpack

    def slow(path: Any, **options: Any) -> None:
        if Path(path).name == digest and not has_looked.is_set():
            has_looked.set()
            other_is_done.wait(0.5)
        remove(path, **options)

    def counted(*arguments: Any) -> None:
        times.append(None)
        unpack(*arguments)

    monkeypatch.setattr(shutil, "rmtree", slow)
    monkeypatch.setattr(shipping, "unpack", counted)
    first = threading.Thread(target=unpacked, args=(packed, digest))
    first.start()
    assert has_looked.wait(60)
    assert unpacked(packed, digest).digest == digest
    other_is_done.set()
    first.join()
    assert len(times) == 1


def test_a_cache_that_others_can_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shipping.cache_folder().chmod(0o777)
    with pytest.raises(ArtifactError, match="can be written by others"):
        shipping.cache_folder()


def test_without_ray_the_command_is_named(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploykit.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'deploykit\[ray\]'"):
        run(artifact_paths["mc"], SLOW, tmp_path / "r", engine="ray")


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nothing_listens_is_said_at_once(
    artifact_paths: dict[str, Path], tmp_path: Path, form: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = form.format(free.getsockname()[1])
        command = [
            sys.executable,
            "-m",
            "deploykit",
            "run",
            artifact_paths["mc"],
            "--data",
            "x.npy",
            "-o",
            tmp_path / "r",
        ]
        done = subprocess.run(
            [*command, "--engine", "ray"], env={**os.environ, "RAY_ADDRESS": address}, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"no Ray cluster answers at {address} (127.0.0.1 port" in done.stderr
    assert "correct RAY_ADDRESS" in done.stderr


@pytest.mark.parametrize("address", ["", "auto", "local", "anyscale://name/of:1", "10.0.0.1"])
def test_other_addresses_are_left_to_ray(address: str) -> None:
    require_answer(address)


def test_an_address_that_answers_is_let_through() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        require_answer(f"ray://127.0.0.1:{server.getsockname()[1]}")
