"""Ranks that a launcher starts: plain processes with its environment, one or several at a time, in any order."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.errors import DeviceError, IncompleteRunError, RunError, UsageError
from deploykit.runs.merging import merge_run
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.verify_run import check_run, verify_run
from runners.job import run
from runners.pipeline.batchsize import Probe
from runners.system.lock import finishing, locked
from tests import handmade
from tests.storage.helpers import make_job

SLOW = f"{Path(__file__).parent / 'slowdata.py'}:make"
ROWS = 64
OPTIONS = ("--batch-size", "2", "--shard-rows", "8")

Environment = dict[str, str]


def torchrun(rank: int, world_size: int, port: int = 0) -> Environment:
    names: Environment = {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "TORCHELASTIC_RUN_ID": "one",
    }
    return names | ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} if port else {})


def srun(rank: int, world_size: int) -> Environment:
    """Two machines as far as Slurm says: one rank on each."""
    return {
        "SLURM_JOB_ID": "9",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(world_size),
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": str(rank),
        "SLURM_STEP_TASKS_PER_NODE": f"1(x{world_size})",
        "SLURM_CPUS_PER_TASK": "1",
    }


def slurm_array(rank: int, world_size: int) -> Environment:
    first = 3
    return {
        "SLURM_ARRAY_JOB_ID": "9",
        "SLURM_ARRAY_TASK_ID": str(first + rank),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_COUNT": str(world_size),
    }


def indexed_job(rank: int, world_size: int) -> Environment:
    return {"JOB_COMPLETION_INDEX": str(rank), "WORLD_SIZE": str(world_size)}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def start(artifact: Path, out: Path, environment: Environment, *options: str, data: str = SLOW, code: str = "") -> Any:
    """A rank in a process of its own, of the command or of ``code`` in its place."""
    command = ["-c", code] if code else ["-m", "deploykit"]
    return subprocess.Popen(
        [sys.executable, "-W", "error", *command, "run", artifact, "--data", data, "-o", out, *OPTIONS, *options],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: Any, code: int = 0) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    return str(out + err)


def parts(path: Path) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in (path / "parts").iterdir()}


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def as_rank(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def whole(artifact_paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The parts of an undisturbed run of the local engine on one rank."""
    path = tmp_path_factory.mktemp("whole") / "r"
    run(artifact_paths["mc"], SLOW, path, batch_size=2, shard_rows=8, engine="local")
    return parts(path)


@pytest.mark.parametrize(
    ("engine", "environment"),
    [("torchrun", torchrun), ("slurm", srun), ("array", slurm_array), ("array", indexed_job)],
    ids=["torchrun", "slurm", "slurm-array", "indexed-job"],
)
def test_ranks_that_are_already_there_give_the_same_bytes(
    artifact_paths: dict[str, Path],
    tmp_path: Path,
    whole: dict[str, bytes],
    engine: str,
    environment: Callable[[int, int], Environment],
) -> None:
    out = tmp_path / "r"
    ranks = [start(artifact_paths["mc"], out, environment(rank, 2), "--engine", engine) for rank in range(2)]
    texts = [ended(rank) for rank in ranks]
    assert parts(out) == whole
    assert verify_run(out).ok
    assert "finished the job" in "".join(texts)
    assert "next: deploykit verify" in "".join(texts)
    report = json.loads((out / "report.json").read_text())
    assert report["complete"]
    assert {commit.rank for commit in RunDirectory.open(out).state().parts.values()} == {0, 1}
    assert {rank["rank"] for rank in report["ranks"]} <= {0, 1}
    assert sum(rank["rows"] for rank in report["ranks"]) == report["rows"]


@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_ranks_that_look_for_a_batch_size_agree(artifact_paths: dict[str, Path], tmp_path: Path, runner: str) -> None:
    data, out, port = tmp_path / "x.npy", tmp_path / "r", free_port()
    np.save(data, handmade.random_inputs("mc", 600)["x"])
    asked = ("--runner", runner, "--batch-size", "auto", "--shard-rows", "64")
    ranks = [start(artifact_paths["mc"], out, torchrun(rank, 2, port), *asked, data=str(data)) for rank in range(2)]
    texts = [ended(rank) for rank in ranks]
    size = RunDirectory.open(out).job.plan.batch_size
    assert 64 % size == 0
    assert any(f"batch size {size} chosen" in text for text in texts)
    assert verify_run(out).ok


def test_the_batch_size_of_the_first_rank_counts(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    def first(*_args: object, **_options: object) -> Probe:
        """While this rank looks, another one has begun the job."""
        run(artifact_paths["mc"], SLOW, tmp_path / "r", batch_size=2, shard_rows=8, engine="local")
        return Probe(size=4, rows_per_s={4: 1.0}, too_large=None)

    monkeypatch.setattr("runners.job.probe_batch_size", first)
    as_rank(monkeypatch, indexed_job(1, 2))
    result = run(artifact_paths["mc"], SLOW, tmp_path / "r", batch_size="auto", shard_rows=8)
    assert "batch size 2 all the same, as another rank found it first" in result.notes
    assert parts(tmp_path / "r") == whole
    monkeypatch.undo()
    as_rank(monkeypatch, indexed_job(1, 2))
    with pytest.raises(RunError, match=r"plan\.shard_rows: 8, asked for 16"):
        run(artifact_paths["mc"], SLOW, tmp_path / "r", batch_size="auto", shard_rows=16)


def test_the_shards_of_the_first_rank_count(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be of another version; this one looked for a job before there was one."""
    as_rank(monkeypatch, indexed_job(0, 2))
    run(artifact_paths["mc"], SLOW, tmp_path / "r", batch_size=2, shard_rows=4)
    as_rank(monkeypatch, indexed_job(1, 2))
    monkeypatch.setattr(RunDirectory, "plan_of", lambda _: None)
    assert run(artifact_paths["mc"], SLOW, tmp_path / "r", batch_size=2).missing_shards == 0
    assert verify_run(tmp_path / "r").ok


@pytest.mark.parametrize("interval", ["batch", "epoch", "batch_and_epoch"])
def test_ranks_one_after_the_other_finish_with_the_last(
    artifact_paths: dict[str, Path], tmp_path: Path, interval: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the jobs of an array do on a full cluster; the last one need not have the last number."""
    options: dict[str, Any] = {"batch_size": 2, "shard_rows": 8, "write_interval": interval, "engine": "array"}
    for done, rank in enumerate([2, 0, 1]):
        as_rank(monkeypatch, {"RANK": str(rank), "WORLD_SIZE": "3"})
        result = run(artifact_paths["mc"], SLOW, tmp_path / "r", **options)
        if done < 2:
            assert result.missing_shards > 0
            assert "missing: rows" in result.notes[-1]
            assert not (tmp_path / "r" / "report.json").exists()
    assert result.missing_shards == 0
    assert set(result.spent_s) == {"start", "read", "infer", "write", "wait"}
    assert result.spent_s["infer"] > 0
    assert verify_run(tmp_path / "r").ok
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert [rank["rank"] for rank in report["ranks"]] == [0, 1, 2]
    assert report["rows"] == ROWS
    assert report["skipped_shards"] == 0
    names = sorted(path.name for path in (tmp_path / "r").glob("predictions_*"))
    assert names == ([f"predictions_{rank}.npy" for rank in range(3)] if interval != "batch" else [])
    again = run(artifact_paths["mc"], SLOW, tmp_path / "r", **options)
    assert (again.computed_rows, again.missing_shards, again.skipped_shards) == (0, 0, 8)


def test_whoever_comes_to_a_job_with_every_part_finishes_it(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last rank was killed after its last part and before the report."""
    options: dict[str, Any] = {"batch_size": 2, "shard_rows": 8, "engine": "array"}
    as_rank(monkeypatch, {"RANK": "0", "WORLD_SIZE": "1"})
    run(artifact_paths["mc"], SLOW, tmp_path / "r", **options)
    (tmp_path / "r" / "report.json").unlink()
    left = tmp_path / "r" / "parts" / ".tmp-1-left"
    left.touch()
    as_rank(monkeypatch, {"RANK": "0", "WORLD_SIZE": "5"})
    with locked(tmp_path / "r", shared=True):
        result = run(artifact_paths["mc"], SLOW, tmp_path / "r", **options)
    assert left.exists(), "another process holds the directory, which may be writing it"
    assert result.computed_rows == 0
    assert json.loads((tmp_path / "r" / "report.json").read_text())["complete"]
    assert "complete" in run(artifact_paths["mc"], SLOW, tmp_path / "r", **options).notes[-1]
    assert not list(tmp_path.rglob(".tmp*"))


def test_more_ranks_than_shards_and_no_rows(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rows in (0, 1):
        np.save(tmp_path / "x.npy", np.ones((rows, 4), np.float32))
        for rank in (1, 2, 0):
            as_rank(monkeypatch, {"RANK": str(rank), "WORLD_SIZE": "3"})
            run(artifact_paths["plain"], tmp_path / "x.npy", tmp_path / f"r{rows}", engine="array")
        assert verify_run(tmp_path / f"r{rows}").committed_rows == rows
        assert json.loads((tmp_path / f"r{rows}" / "report.json").read_text())["complete"]


def test_a_rank_that_dies_costs_its_shard_and_another_engine_resumes(
    artifact_paths: dict[str, Path], tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out, deadly = tmp_path / "r", {"DEADLY_ROWS": "27"}
    ranks = [start(artifact_paths["mc"], out, torchrun(rank, 2) | deadly, "--engine", "torchrun") for rank in range(2)]
    ended(ranks[1], -signal.SIGKILL)
    text = ended(ranks[0])
    assert "start the ranks again to resume: torchrun --standalone --nproc-per-node 2 -m deploykit run" in text
    assert "--engine" not in text, "the command is for the launcher, and for one process without it"
    missing = check_run(out).missing
    assert missing
    assert all(start // 8 % 2 == 1 for start, _ in missing), "the shards of rank 0 are all there"
    ended(start(artifact_paths["mc"], out, srun(0, 3), "--engine", "slurm"))
    run(artifact_paths["mc"], SLOW, out, batch_size=2, shard_rows=8, devices="cpu:2", engine="local")
    assert parts(out) == whole
    assert verify_run(out).ok


def test_launched_ranks_resume_what_the_local_engine_began(
    artifact_paths: dict[str, Path], tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r"
    run(artifact_paths["mc"], SLOW, out, batch_size=2, shard_rows=8, engine="local")
    (out / "commits" / "part-000002.json").unlink()
    damaged = out / "parts" / "part-000005.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    computed = 0
    for rank in range(2):
        as_rank(monkeypatch, torchrun(rank, 2))
        result = run(artifact_paths["mc"], SLOW, out, batch_size=2, shard_rows=8)
        computed += result.computed_rows
        assert any("--engine torchrun" in note for note in result.notes), "what was detected is said"
    assert computed == 16
    assert parts(out) == whole
    assert verify_run(out).ok


def test_sigterm_finishes_the_shard_and_says_how_to_resume(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "r"
    process = start(artifact_paths["mc"], out, {**srun(1, 2), "SLOW_S": "0.02"}, "--engine", "slurm")
    wait_for(lambda: list(out.glob("commits/part-*.json")))
    process.terminate()
    text = ended(process, 143)
    assert "stopped by SIGTERM" in text
    assert "rank 1 of 2 ends" in text
    assert not check_run(out).damaged
    assert not list(out.rglob(".tmp*"))


def test_a_local_run_and_launched_ranks_keep_apart(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r"
    options: dict[str, Any] = {"batch_size": 2, "shard_rows": 8}
    with start(artifact_paths["mc"], out, {**torchrun(0, 2), "SLOW_S": "0.1"}) as process:
        wait_for((out / "run.json").exists)
        with pytest.raises(RunError, match="another run is writing into it"):
            run(artifact_paths["mc"], SLOW, out, engine="local", **options)
        as_rank(monkeypatch, torchrun(1, 2))
        with pytest.raises(RunError, match="another job: draws"):
            run(artifact_paths["mc"], SLOW, out, draws=3, **options)
        assert run(artifact_paths["mc"], SLOW, out, **options).computed_rows == 32
        process.kill()
        process.communicate()


def test_a_directory_of_something_else_is_refused(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.txt").touch()
    as_rank(monkeypatch, torchrun(0, 2))
    with pytest.raises(RunError, match="not empty"):
        run(artifact_paths["plain"], SLOW, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("devices", "error", "text"),
    [
        ("cpu:2", UsageError, "each process is one rank; use --devices cpu"),
        ("cuda:0", DeviceError, "no CUDA device|local rank 1 has none"),
    ],
)
def test_devices_of_a_rank(
    artifact_paths: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    devices: str,
    error: type[Exception],
    text: str,
) -> None:
    as_rank(monkeypatch, torchrun(1, 2))
    with pytest.raises(error, match=text):
        run(artifact_paths["plain"], SLOW, tmp_path / "r", devices=devices)
    assert not (tmp_path / "r").exists()


def test_a_rank_takes_the_device_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    from runners.engines.launched import SlurmEngine, TorchrunEngine
    from runners.onnx_runner import OnnxRunner

    monkeypatch.setattr(OnnxRunner, "cuda_count", classmethod(lambda _: 4))
    as_rank(monkeypatch, torchrun(2, 4))
    engine = TorchrunEngine()
    assert [str(device) for device in engine.devices("cuda", OnnxRunner)] == ["cuda:2"]
    assert [str(device) for device in engine.devices("auto", OnnxRunner)] == ["cuda:2"]
    assert [str(device) for device in engine.devices("cuda:3,1,0", OnnxRunner)] == ["cuda:0"]
    assert [str(device) for device in engine.devices("cpu", OnnxRunner)] == ["cpu"]
    with pytest.raises(DeviceError, match="local rank 2 has none, there are 2 for 4 ranks"):
        engine.devices("cuda:0,1", OnnxRunner)
    as_rank(monkeypatch, srun(2, 4) | {"SLURM_LOCALID": "2"})
    monkeypatch.setattr(OnnxRunner, "cuda_count", classmethod(lambda _: 1))
    assert [str(device) for device in SlurmEngine().devices("cuda", OnnxRunner)] == ["cuda:0"], "as --gpus-per-task"


@pytest.mark.parametrize("engine", ["torchrun", "slurm", "array"])
def test_an_onnx_rank_needs_no_torch(artifact_paths: dict[str, Path], tmp_path: Path, engine: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['ray'] = None\n"
        "from runners.job import run\n"
        "run(*sys.argv[1:4], engine=sys.argv[4], batch_size=2, shard_rows=8)"
    )
    environment = {**os.environ, **torchrun(0, 1, port=1), **srun(0, 1)}
    subprocess.run(
        [sys.executable, "-c", code, artifact_paths["mc"], SLOW, tmp_path / "r", engine], env=environment, check=True
    )
    assert verify_run(tmp_path / "r").ok


def test_one_process_at_a_time_finishes_a_job_whose_run_json_another_rank_replaces(tmp_path: Path) -> None:
    out, begins, ended = tmp_path / "r", threading.Event(), threading.Event()
    RunDirectory.join(out, make_job())

    def second() -> None:
        begins.set()
        with finishing(out):
            ended.set()

    other = threading.Thread(target=second)
    with finishing(out):
        before = (out / "run.json").stat().st_ino
        RunDirectory.join(out, make_job(on_error="skip"))
        assert (out / "run.json").stat().st_ino != before
        other.start()
        assert begins.wait(10)
        assert not ended.wait(0.3)
    assert ended.wait(10)
    other.join()


def test_the_report_has_what_another_rank_has_added_meanwhile(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r"
    np.save(tmp_path / "x.npy", handmade.random_inputs("plain", 4)["x"])

    def another(*_: object) -> str:
        job = json.loads((out / "run.json").read_text())
        (out / "run.json").write_text(json.dumps({**job, "on_error": "skip"}))
        return ""

    monkeypatch.setattr("runners.engines.finish.look_for_change", another)
    as_rank(monkeypatch, indexed_job(0, 1))
    run(artifact_paths["plain"], tmp_path / "x.npy", out, engine="array")
    assert json.loads((out / "report.json").read_text())["on_error"] == "skip"


def test_measurements_of_another_version_are_left_out(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"batch_size": 2, "shard_rows": 8, "engine": "array"}
    as_rank(monkeypatch, {"RANK": "0", "WORLD_SIZE": "2"})
    run(artifact_paths["mc"], SLOW, tmp_path / "r", **options)
    (tmp_path / "r" / "logs" / "rank-0.measured.json").write_text('{"run": "", "new": 1}')
    as_rank(monkeypatch, {"RANK": "1", "WORLD_SIZE": "2"})
    run(artifact_paths["mc"], SLOW, tmp_path / "r", **options)
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert [rank["rank"] for rank in report["ranks"]] == [1]
    assert report["skipped_shards"] == 4
    assert "no measurements of rank 0 of 2" in report["notes"][-1]


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["batch", "epoch"])
def test_ranks_that_are_killed_and_started_again_lose_nothing(
    artifact_paths: dict[str, Path], tmp_path: Path, interval: str
) -> None:
    """Three ranks at a time, one of them killed at a random moment, until the job is there; then every file counts."""
    out, chance = tmp_path / "r", random.Random(5)
    for _ in range(12):
        environment = {"SLOW_S": "0.01"}
        options = ("--engine", "array", "--write-interval", interval)
        ranks = [
            start(artifact_paths["mc"], out, {"RANK": str(rank), "WORLD_SIZE": "3", **environment}, *options)
            for rank in range(3)
        ]
        time.sleep(chance.uniform(0.3, 1.5))
        victim = chance.choice(ranks)
        victim.kill()
        for rank in ranks:
            rank.communicate(timeout=120)
            assert rank.returncode == 0 or rank is victim
        if (out / "run.json").exists() and check_run(out).ok and (out / "report.json").exists():
            break
    ended(start(artifact_paths["mc"], out, {}, "--engine", "local", "--write-interval", interval))
    assert verify_run(out).ok
    assert not list(out.rglob(".tmp*"))
    whole = run(artifact_paths["mc"], SLOW, tmp_path / "whole", batch_size=2, shard_rows=8, engine="local")
    merged = [merge_run(path, tmp_path / f"{path.name}.npz") for path in (out, whole.path)]
    with np.load(merged[0]) as ours, np.load(merged[1]) as theirs:
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs.files)


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["onnx", "torch"])
def test_torchrun_itself(artifact_paths: dict[str, Path], tmp_path: Path, runner: str) -> None:
    """The torch runner's ranks meet in a process group and take shards from a counter in its store."""
    options: dict[str, Any] = {"batch_size": 2, "shard_rows": 8, "runner": runner}
    run(artifact_paths["mc"], SLOW, tmp_path / "whole", engine="local", **options)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = ["-m", "deploykit", "run", artifact_paths["mc"], "--data", SLOW, "-o", tmp_path / "r"]
    done = subprocess.run(
        [sys.executable, *launcher, *command, *OPTIONS, "--runner", runner, "--engine", "torchrun"],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert parts(tmp_path / "r") == parts(tmp_path / "whole")
    assert verify_run(tmp_path / "r").ok


@pytest.mark.slow
def test_a_slow_torch_rank_leaves_its_work_to_the_others(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    """No torchrun here: rank 0 itself holds the store, as it does under other launchers.

    Rank 0 goes on once rank 1 has a shard, and rank 1 once rank 0 has ended.
    """
    out, port = tmp_path / "r", free_port()
    arrived, alone = tmp_path / "arrived", tmp_path / "alone"
    waits = [{"AWAITED": str(arrived)}, {"ARRIVED": str(arrived), "AWAITED": str(alone)}]
    ranks = [
        start(artifact_paths["mc"], out, torchrun(rank, 2, port) | wait, "--runner", "torch")
        for rank, wait in enumerate(waits)
    ]
    for rank in ranks:
        assert "Exception raised from" not in ended(rank), "rank 0, which holds the store, ends first"
        alone.touch()
    assert verify_run(out).ok
    counts = [commit.rank for commit in RunDirectory.open(out).state().parts.values()]
    assert counts.count(0) > counts.count(1) > 0


@pytest.mark.slow
def test_a_torch_rank_that_never_comes_is_said(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runners.store import Group

    as_rank(monkeypatch, torchrun(0, 2, free_port()))
    monkeypatch.setattr("runners.engines.launched.Group", lambda **fields: Group(**fields, timeout_s=2.0))
    with pytest.raises(RunError, match="2 ranks did not meet within 2 s") as caught:
        run(artifact_paths["mc"], SLOW, tmp_path / "r", runner="torch")
    assert not isinstance(caught.value, IncompleteRunError)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_torch_rank_that_waits_for_one_that_never_comes_can_be_stopped(
    number: signal.Signals, artifact_paths: dict[str, Path], tmp_path: Path
) -> None:
    out, port = tmp_path / "r", free_port()
    process = start(artifact_paths["mc"], out, torchrun(0, 2, port), "--runner", "torch")
    wait_for(lambda: listens(port))
    time.sleep(0.5)  # From where it listens to where it waits for the other is no way at all.
    process.send_signal(number)
    sent = time.monotonic()
    text = ended(process, 128 + number)
    assert time.monotonic() - sent < 60, "the wait of two minutes was not cut short"
    assert f"stopped by {number.name}" in text
    assert "rank 0 of 2 ends; 0 of 8 parts are there" in text
    assert not check_run(out).damaged


def test_jobs_of_an_array_leave_failing_rows_out(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = f"{Path(__file__).parent / 'faultydata.py'}:make"
    monkeypatch.setenv("BAD_NAN", "5,17,33")
    found = []
    for rank in range(2):
        for name, value in indexed_job(rank, 2).items():
            monkeypatch.setenv(name, value)
        found.append(
            run(
                artifact_paths["plain"],
                faulty,
                tmp_path / "r",
                batch_size=8,
                shard_rows=16,
                on_error="skip",
                engine="array",
            )
        )
    assert found[0].missing_shards > 0
    assert (found[1].missing_shards, found[1].failed_rows) == (0, 3)
    assert json.loads((tmp_path / "r" / "report.json").read_text())["failed_rows"] == 3
    assert len((tmp_path / "r" / "failed.jsonl").read_text().splitlines()) == 3
    assert len(verify_run(tmp_path / "r").failed) == 3
