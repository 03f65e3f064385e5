"""Looking on: the status of a run in every condition that it can be in, its logs, and that looking disturbs nothing."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from deploykit import signs
from deploykit.cli.status import _describe as describe
from deploykit.errors import IncompleteRunError, RunError
from deploykit.runs.epoch import is_finished
from deploykit.runs.merging import merge_run
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.verify_run import verify_run
from deploykit.runs.watching import RankStatus, RunStatus, run_status
from deploykit.signs import CallSign, RankSign, leave_sign, read_signs, signing
from runners.engines.finish import finish_files
from runners.job import run
from runners.pipeline.timing import Meter
from runners.ranks import recorder
from runners.ranks.assignment import Assignment
from runners.ranks.recorder import Recorder
from tests.runners.test_ranks import OPTIONS, SLOW, rank_pids, start, wait_for
from tests.storage.helpers import make_job


def snapshot(path: Path) -> dict[str, tuple[int, int]]:
    return {str(file): (file.stat().st_mtime_ns, file.stat().st_size) for file in path.rglob("*") if file.is_file()}


def events(path: Path, rank: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "logs" / f"rank-{rank}.jsonl").read_text().splitlines()]


def test_before_a_run(tmp_path: Path) -> None:
    for path in (tmp_path / "never", tmp_path):
        found = run_status(path)
        assert (found.state, found.rows, found.ranks) == ("not started", 0, ())
        assert "deploykit run" in describe(found)
    assert not (tmp_path / "never").exists()
    (tmp_path / ".tmp-run.json").touch()  # What the first moments leave.
    (tmp_path / ".lock").touch()
    assert run_status(tmp_path).state == "not started"
    (tmp_path / "a.txt").touch()
    for path, said in ((tmp_path, r"holds no run\.json"), (tmp_path / "a.txt", "is a file")):
        with pytest.raises(RunError, match=said):
            run_status(path)


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_a_finished_run(artifact_paths: dict[str, Path], tmp_path: Path, devices: str) -> None:
    run(artifact_paths["mc"], SLOW, tmp_path / "r", devices=devices, **OPTIONS)  # type: ignore[arg-type]
    before = snapshot(tmp_path / "r")
    found = run_status(tmp_path / "r")
    assert snapshot(tmp_path / "r") == before
    assert (found.state, found.rows, found.done_rows, found.shards, found.done_shards) == ("finished", 64, 64, 8, 8)
    assert (found.rows_per_s, found.left_s, found.damage, found.error) == (None, None, (), None)
    assert sum(rank.rows for rank in found.ranks) == 64
    assert {(rank.state, rank.lag_s, rank.device) for rank in found.ranks} == {("ended", None, "cpu")}
    assert found.to_resume == ""
    assert "64 of 64 rows (100%) in 8 of 8 parts" in describe(found)
    assert "predicted" in describe(found)
    assert json.loads(json.dumps(found.to_json()))["ranks"][0]["rank"] == 0
    (tmp_path / "r" / "parts" / "part-000002.npy").write_bytes(b"")
    damaged = run_status(tmp_path / "r")
    assert (damaged.state, damaged.done_rows) == ("interrupted", 56)
    assert "deploykit run" in damaged.to_resume
    assert "part-000002.npy: 0 bytes" in damaged.damage[0]
    assert "damaged: parts/part-000002.npy" in describe(damaged)


def test_every_field_of_the_status_is_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "run.md").read_text(encoding="utf-8")
    table = page[page.index("`--json` has the fields") : page.index("The terminal of the run itself")]
    for kind in (RunStatus, RankStatus):
        assert {f"`{field.name}`" for field in fields(kind)} <= set(re.findall(r"`\w+`", table))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks through /proc")
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("write_interval", ["epoch", "batch_and_epoch"])
def test_a_run_with_files_of_the_ranks_is_finished_when_they_are_there(
    layout: str, write_interval: str, artifact_paths: dict[str, Path], tmp_path: Path
) -> None:
    options: dict[str, Any] = {**OPTIONS, "write_interval": write_interval, "layout": layout}
    run(artifact_paths["mc"], SLOW, tmp_path / "r", devices="cpu", **options)
    assert run_status(tmp_path / "r").state == "finished"
    (tmp_path / "r" / "predictions_0.npy").write_bytes(b"")
    assert run_status(tmp_path / "r").state == "interrupted"


def test_a_run_at_work_and_after_its_death(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "r"
    with start(artifact_paths["mc"], out, {"SLOW_S": "0.06"}, devices="cpu:2") as process:
        wait_for(lambda: len(list(out.glob("commits/part-*.json"))) >= 2)
        wait_for(lambda: all(rank.rows for rank in run_status(out).ranks))
        found = run_status(out)
        pids = rank_pids(process.pid)
        process.kill()
        process.communicate()
    assert found.state == "running"
    assert 16 <= found.done_rows < 64
    assert found.rows_per_s is not None
    assert found.left_s == pytest.approx((64 - found.done_rows) / found.rows_per_s)
    assert [(rank.rank, rank.state) for rank in found.ranks] == [(0, "working"), (1, "working")]
    assert all(rank.lag_s is not None and rank.lag_s < 30 for rank in found.ranks)
    assert "left" in describe(found)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    dead = run_status(out)
    assert (dead.state, dead.rows_per_s, dead.left_s) == ("interrupted", None, None)
    assert {rank.state for rank in dead.ranks} == {"gone"}
    assert "to resume it: deploykit run" in describe(dead)
    run(artifact_paths["mc"], SLOW, out, devices="cpu", **OPTIONS)  # type: ignore[arg-type]
    again = run_status(out)
    assert (again.state, [rank.rank for rank in again.ranks]) == ("finished", [0]), "old ranks are forgotten"
    assert not list((out / "status").glob(".tmp*"))


def test_a_rank_that_died_while_the_others_work_on(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "r"
    slow = {"SLOW_S": "0.05", "SLOW_ROWS": "4096"}
    with start(artifact_paths["mc"], out, slow, devices="cpu:2", progress="lines") as process:
        wait_for(lambda: len(run_status(out).ranks) == 2 and all(rank.rows for rank in run_status(out).ranks))
        os.kill(next(sign.pid for sign in read_signs(out)[1] if sign.rank == 1), signal.SIGKILL)
        wait_for(lambda: run_status(out).ranks[1].state == "gone")
        found = run_status(out)
        assert process.stderr is not None
        said = next(line for line in process.stderr if "warning" in line)  # While the other one is at work.
        process.terminate()
        ended = process.communicate()[1]
    assert (found.state, found.ranks[0].state) == ("running", "working")
    assert found.rows_per_s == pytest.approx(found.ranks[0].rows_per_s)
    assert "rank 1 on cpu died, killed by SIGKILL" in said
    assert "stopped by SIGTERM; rank 1 on cpu died, killed by SIGKILL" in ended


def test_a_run_that_was_stopped_says_how_to_resume(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "r"
    with start(artifact_paths["mc"], out, {"SLOW_S": "0.02"}, devices="cpu") as process:
        wait_for(lambda: list(out.glob("commits/part-*.json")))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    found = run_status(out)
    assert found.state == "interrupted"
    assert found.error is not None
    assert "stopped by SIGINT" in found.error
    assert "deploykit run" in describe(found)


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_a_run_that_failed_says_why(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: str
) -> None:
    monkeypatch.setenv("BROKEN_ROW", "42")
    with pytest.raises(Exception, match="this row is broken"):
        run(artifact_paths["mc"], SLOW, tmp_path / "r", devices=devices, **OPTIONS)  # type: ignore[arg-type]
    found = run_status(tmp_path / "r")
    assert found.state == "failed"
    assert "this row is broken" in str(found.error)
    assert any("this row is broken" in str(rank.error) for rank in found.ranks)
    errors = [each for rank in found.ranks for each in events(tmp_path / "r", rank.rank) if each["event"] == "error"]
    assert "this row is broken" in errors[0]["message"]


def test_a_rank_that_dies_leaves_an_interrupted_run(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEADLY_ROWS", "27")
    with pytest.raises(IncompleteRunError):
        run(artifact_paths["mc"], SLOW, tmp_path / "r", devices="cpu:2", **OPTIONS)  # type: ignore[arg-type]
    found = run_status(tmp_path / "r")
    assert found.state == "interrupted"
    assert "killed by SIGKILL" in str(found.error)


def test_the_log_of_a_rank_tells_its_story_once_for_each_call(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "r"
    run(artifact_paths["mc"], SLOW, out, devices="cpu", **OPTIONS)  # type: ignore[arg-type]
    told = events(out, 0)
    assert [each["event"] for each in told][:3] == ["start", "ready", "begun"]
    assert told[0]["device"] == "cpu"
    assert sorted(each["shard"] for each in told if each["event"] == "committed") == list(range(8))
    for each in told:
        if each["event"] == "committed":
            assert each["rows"] == 8
            assert {"seconds", "read_s", "infer_s", "write_s"} <= set(each)
    assert told[-1]["event"] == "end"
    assert told[-1]["rows"] == 64
    log = out / "logs" / "rank-0.jsonl"
    log.write_text(log.read_text() + '{"event": "beg')  # Killed in the middle of a line.
    (out / "commits" / "part-000003.json").unlink()
    run(artifact_paths["mc"], SLOW, out, devices="cpu", **OPTIONS)  # type: ignore[arg-type]
    lines = log.read_text().splitlines()
    assert lines[len(told)] == '{"event": "beg'
    assert [json.loads(line)["event"] for line in lines[len(told) + 1 :]] == [
        "start", "ready", "begun", "committed", "end",
    ]  # fmt: skip


class Quiet:
    def started(self, shard: Any) -> None: ...

    def predicted(self, rows: int) -> None: ...

    def committed(self, commit: Any) -> None: ...


def assignment(path: Path) -> Assignment:
    from deploykit.devices import Device

    return Assignment(
        artifact="a", data="d", directory=str(path), runner="onnx", rank=3, device=Device(), threads=1, group=None,
        origin_s=time.monotonic(),
    )  # fmt: skip


def test_a_rank_of_a_run_at_a_url_names_the_url(tmp_path: Path) -> None:
    """The copy is on one machine, and the sign and the log are read on others."""

    def work() -> None:
        with Recorder(replace(assignment(tmp_path), place="s3://bucket/today"), Quiet(), Meter()) as one:
            one.warned(f"{tmp_path}/parts: slow")
            raise RunError(f"cannot write {tmp_path}/parts/part-000000.npy")

    with pytest.raises(RunError):
        work()
    assert read_signs(tmp_path)[1][0].error == "cannot write s3://bucket/today/parts/part-000000.npy"
    told = [each.get("text") or each.get("message") for each in events(tmp_path, 3)]
    assert told[1:] == ["s3://bucket/today/parts: slow", "cannot write s3://bucket/today/parts/part-000000.npy"]


def test_signs_are_rare_and_a_full_disk_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[RankSign] = []
    monkeypatch.setattr(recorder, "leave_sign", lambda path, sign: written.append(sign))
    with Recorder(assignment(tmp_path), Quiet(), Meter()) as one:
        one.ready(0.1)
        for _ in range(10_000):
            one.predicted(2)
    assert len(written) < 10
    assert (written[-1].rows, written[-1].state) == (20_000, "ended")
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with Recorder(assignment(tmp_path / "file"), Quiet(), Meter()) as one:  # Neither file can be written.
        one.predicted(2)
        one.warned("still there")


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": world_size}.items():
        monkeypatch.setenv(name, str(value))


def sign(**changes: Any) -> RankSign:
    fields = {"rank": 0, "device": "cuda:0", "host": "elsewhere", "pid": 1, "state": "working", "rows": 5,
              "rows_per_s": 2.0, "began": time.time() - 9, "at": time.time()}  # fmt: skip
    return RankSign(**{**fields, **changes})


def test_a_call_on_another_host_lives_as_long_as_its_ranks_give_signs(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r"
    run(artifact_paths["mc"], SLOW, out, devices="cpu", **OPTIONS)  # type: ignore[arg-type]
    (out / "commits" / "part-000003.json").unlink()
    with signing(out):
        call, _ = read_signs(out)
        assert call is not None
        assert call.is_alive()
        assert replace(call, birth="another process of that number").is_alive() is False
        (out / "status" / "run.json").write_text(json.dumps(asdict(replace(call, host="elsewhere"))))
        leave_sign(out, sign())
        leave_sign(out, sign(rank=1, at=time.time() - 30))
        found = run_status(out)
        assert (found.state, found.rows_per_s, found.left_s) == ("running", 4.0, 2.0)
        assert [round(rank.lag_s or 0) for rank in found.ranks] == [0, 30]
        leave_sign(out, sign(at=time.time() - 1000))
        leave_sign(out, sign(rank=1, at=time.time() - 1000))
        assert run_status(out).state == "interrupted"
        (out / "status" / "rank-0.json").write_text("{half")
        assert [rank.rank for rank in run_status(out).ranks] == [1], "what cannot be read says nothing"


def test_ranks_of_a_launcher_speak_for_themselves(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a call before them has left says nothing of them; those on this machine that are dead do not work."""
    out = tmp_path / "r"
    monkeypatch.setenv("DEADLY_ROWS", "19,27")  # Each of the ranks below has one of these shards.
    with pytest.raises(IncompleteRunError):
        run(artifact_paths["mc"], SLOW, out, devices="cpu:2", **OPTIONS)  # type: ignore[arg-type]
    monkeypatch.setenv("DEADLY_ROWS", "")
    seen: list[str] = []
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    run(
        artifact_paths["mc"],
        SLOW,
        out,
        engine="array",
        progress=lambda *_: seen.append(run_status(out).state),
        **OPTIONS,
    )  # type: ignore[arg-type]
    assert seen[0] == "running"
    here, process = socket.gethostname(), subprocess.Popen(["sleep", "60"])
    leave_sign(out, sign(host=here, pid=process.pid))
    assert run_status(out).state == "running"
    process.kill()
    wait_for(lambda: run_status(out).state == "interrupted")
    process.wait()


def test_a_clock_that_was_set_back_gives_no_absurd_rate(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    out, now = tmp_path / "r", time.time()
    run(artifact_paths["mc"], SLOW, out, devices="cpu", **OPTIONS)  # type: ignore[arg-type]
    for working_s, rate in ((2.0, 10.0), (0.0, 0.0)):
        leave_sign(out, sign(state="ended", rows=20, began=now + 3600, at=now, working_s=working_s))
        assert run_status(out).ranks[0].rows_per_s == rate


def test_a_dead_process_is_not_alive() -> None:

    process = subprocess.Popen(["sleep", "60"])
    call = CallSign(host=socket.gethostname(), pid=process.pid, birth=signs._birth(process.pid), began=0.0)
    assert call.is_alive() is True
    process.kill()
    wait_for(lambda: not call.is_alive())  # Dead, and not yet waited for.
    process.wait()
    assert call.is_alive() is False


def test_the_directory_may_be_copied_while_it_is_watched(artifact_paths: dict[str, Path], tmp_path: Path) -> None:
    """Signs are no part of the job: without them the run is as finished as before."""
    import shutil

    out = tmp_path / "r"
    run(artifact_paths["mc"], SLOW, out, devices="cpu", write_interval="epoch", **OPTIONS)  # type: ignore[arg-type]
    assert run_status(out).state == "finished"
    shutil.rmtree(out / "status")
    assert is_finished(RunDirectory.open(out))
    assert (run_status(out).state, run_status(out).done_rows) == ("finished", 64)


def test_a_rank_of_a_launcher_that_makes_the_last_files_is_at_work(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "r", []
    finish = finish_files

    def watched(*args: Any, **options: Any) -> None:
        first = read_signs(out)[1][0].at
        wait_for(lambda: read_signs(out)[1][0].at > first)  # Another host knows by that that it lives.
        seen.append(run_status(out))
        finish(*args, **options)

    monkeypatch.setattr(signs, "AGAIN_S", 0.01)
    monkeypatch.setattr("runners.engines.finish.finish_files", watched)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    options: dict[str, Any] = {**OPTIONS, "engine": "array", "write_interval": "epoch"}
    run(artifact_paths["mc"], SLOW, out, **options)
    (found,) = seen
    assert (found.state, found.done_rows, [rank.state for rank in found.ranks]) == ("running", 64, ["ending"])
    over = run_status(out)
    assert (over.state, [(rank.state, rank.rows) for rank in over.ranks]) == ("finished", [("ended", 64)])
    # One that finds all computed has said nothing before.
    (out / "report.json").unlink()
    (out / "status" / "rank-0.json").unlink()
    run(artifact_paths["mc"], SLOW, out, **options)
    assert [(rank.state, rank.rows) for rank in seen[1].ranks] == [("ending", 0)]
    assert run_status(out).state == "finished"


def test_what_stops_a_rank_of_a_launcher_is_told(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RunError("cannot write the last file: no space left on device")

    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    options: dict[str, Any] = {**OPTIONS, "engine": "array", "write_interval": "epoch"}
    with monkeypatch.context() as patch:
        patch.setattr("runners.engines.finish.finish_files", full)
        with pytest.raises(RunError):
            run(artifact_paths["mc"], SLOW, tmp_path / "r", **options)
    found = run_status(tmp_path / "r")
    assert (found.state, found.done_rows, [rank.state for rank in found.ranks]) == ("failed", 64, ["failed"])
    assert "cannot write the last file: no space left on device" in describe(found)
    run(artifact_paths["mc"], SLOW, tmp_path / "r", **options)
    assert run_status(tmp_path / "r").state == "finished"


@pytest.mark.parametrize("engine", ["array", "local"])
def test_a_report_that_cannot_be_written_is_told_where_every_part_is_there(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RunError("cannot write report.json: no space left on device")

    if engine == "array":
        as_rank(monkeypatch, 0, 1)
    options: dict[str, Any] = {**OPTIONS, "engine": engine}
    with monkeypatch.context() as patch:
        patch.setattr("runners.report.write_json", full)
        with pytest.raises(RunError):
            run(artifact_paths["mc"], SLOW, tmp_path / "r", **options)
    found = run_status(tmp_path / "r")
    assert (found.state, found.done_rows) == ("failed", 64)
    assert "cannot write report.json: no space left on device" in describe(found)
    # The call that finds all of it computed works nothing; what the one before it said is over.
    run(artifact_paths["mc"], SLOW, tmp_path / "r", **options)
    found = run_status(tmp_path / "r")
    assert (found.state, found.error) == ("finished", None)
    assert [(rank.state, rank.error) for rank in found.ranks] == ([("ended", None)] if engine == "array" else [])


def test_what_ranks_of_an_earlier_launch_failed_with_is_over(
    artifact_paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those of the same launch it is not: they may have come before this one."""
    run(artifact_paths["mc"], SLOW, tmp_path / "r", **OPTIONS)
    (tmp_path / "r" / "commits" / "part-000000.json").unlink()
    for rank in (0, 1, 3):
        leave_sign(tmp_path / "r", sign(rank=rank, state="failed", error=f"of rank {rank}"))

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    for world_size, others in ((2, [1]), (1, [])):
        as_rank(monkeypatch, 0, world_size)
        with pytest.raises((KeyboardInterrupt, IncompleteRunError)):
            run(artifact_paths["mc"], SLOW, tmp_path / "r", engine="array", progress=stopped, **OPTIONS)
        found = run_status(tmp_path / "r")
        assert [rank.rank for rank in found.ranks if rank.rank] == others
        assert (found.state, found.error) == (("failed", "of rank 1") if others else ("interrupted", None))


def test_rows_that_are_missing_while_a_run_is_at_work_are_waited_for(
    artifact_paths: dict[str, Path], tmp_path: Path
) -> None:
    out, said = tmp_path / "r", []

    def look(*_: int) -> None:
        if not said:
            for call in (lambda: merge_run(out, tmp_path / "all.npz"), lambda: verify_run(out)):
                with pytest.raises(IncompleteRunError) as missing:
                    call()
                said.append(str(missing.value))
            merge_run(out, tmp_path / "some.npz", allow_partial=True, told=said.append)

    run(artifact_paths["mc"], SLOW, out, devices="cpu", progress=look, **OPTIONS)  # type: ignore[arg-type]
    assert len(said) == 3
    for text in said:
        assert "as the run is at work, wait until it ends (deploykit status" in text
        assert "to resume it" not in text
    (out / "commits" / "part-000003.json").unlink()
    with pytest.raises(IncompleteRunError, match="or, to resume it: deploykit run"):
        merge_run(out, tmp_path / "all.npz")


def test_between_two_ranks_of_an_array_others_may_come(tmp_path: Path) -> None:
    out = RunDirectory.prepare(tmp_path / "r", make_job(command="deploykit run model")).path
    sign = RankSign(rank=0, device="cpu", host="there", pid=1, state="ended", rows=4, rows_per_s=1.0, began=1.0, at=2.0)
    leave_sign(out, sign)
    said = "nobody works on it; if no other rank is to come, to resume it: deploykit run model"
    assert said in describe(run_status(out))
    leave_sign(out, replace(sign, state="working"))
    assert "nobody works on it; to resume it: deploykit run model" in describe(run_status(out)), "it died"
