import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploykit.errors import DeploykitError, IncompleteRunError, RunError, UnknownNameError
from deploykit.plan import make_plan
from deploykit.runs.early import LOCK_NAME
from deploykit.runs.epoch import finish_epoch, is_finished
from deploykit.runs.job import Job
from deploykit.runs.rundir import RunDirectory
from deploykit.runs.verify_run import check_run
from deploykit.runs.watching import run_status
from deploykit.tensors import TensorSpec
from deploykit.writers import Batch, Writer
from deploykit.writers.npy import NpyWriter

from .helpers import OUTPUTS, batch_of, batches_of, files_of, make_job, run_all, writer_of


def test_a_run_directory_as_documented(tmp_path: Path) -> None:
    directory = run_all(tmp_path / "new" / "run", make_job(rows=10))
    assert sorted(files_of(directory.path)) == [
        "commits/part-000000.json", "commits/part-000001.json", "commits/part-000002.json",
        "parts/part-000000.npy", "parts/part-000001.npy", "parts/part-000002.npy", "run.json",
    ]  # fmt: skip
    commit = json.loads((directory.commits / "part-000002.json").read_text())
    assert commit | {"sha256": "", "size_bytes": 0} == {
        "shard": 2, "start": 8, "stop": 10, "rows": 2, "file": "parts/part-000002.npy", "size_bytes": 0,
        "sha256": "", "rank": 0, "job": directory.job.id, "timings": {"infer_s": 0.5},
    }  # fmt: skip
    assert directory.missing() == []
    assert is_finished(directory)
    assert sorted(directory.state().parts) == [0, 1, 2]
    assert RunDirectory.open(directory.path).job == make_job(rows=10).with_id()


def test_the_job_survives_json() -> None:
    job = make_job(data={"kind": "factory", "shape": (1, 2)}, seed=None, draws=None)
    again = Job.from_json(json.loads(json.dumps(job.to_json())))
    assert job.differences(again) == {}
    assert again.plan == job.plan
    assert again.outputs == job.outputs


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "artifact": (
        {"artifact": "b" * 64},
        r"artifact model is not what it was when .* To resume it, give the artifact that .*artifact: 'aaaa.*'bb",
    ),
    "other artifact": ({"artifact": "b" * 64, "artifact_path": "net"}, "net is not the one that .* began with, model"),
    "format": ({"format": "torchscript"}, "format: 'onnx', asked for 'torchscript'"),
    "seed": ({"seed": 1}, "seed: 0, asked for 1"),
    "no seed": ({"seed": None}, "seed: 0, asked for None"),
    "draws": ({"draws": 7}, "draws: 50, asked for 7"),
    "writer": ({"writer": "pt"}, "writer: 'npy', asked for 'pt'"),
    "interval": ({"write_interval": "epoch"}, "write_interval: 'batch', asked for 'epoch'"),
    "plan": ({"plan": make_plan(20, 5, 20, 5)}, "plan.batch_size: 2, asked for 5; plan.shard_rows: 4, asked for 5"),
    "data": (
        {"data": {"kind": "npy", "size_bytes": 3}},
        r"data x\.npy is not what it was when the run began \(then 320 bytes, now 3\)\. To resume it, put the old data "
        r"back; or .* \(data\.arrays\.x\.dtype: 'float32', asked for 'nothing'",
    ),
    "rows": (
        {"data": {"kind": "npy", "size_bytes": 640}, "plan": make_plan(40, 2, 20, 4), "seed": 1},
        r"20 rows, now 40; then 320 bytes, now 640\); seed: 0, asked for 1\. To resume it, put the old data back and "
        r"use the old values; or .*plan\.rows: 20, asked for 40",
    ),
    "other data": (
        {"data": {"kind": "factory", "sha256_sample": "b"}, "data_source": "d.py:rows"},
        r"data d\.py:rows is not that of the run, which began with x\.npy \(other content\)",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_job_is_refused_by_every_difference(tmp_path: Path, name: str) -> None:
    change, said = CHANGES[name]
    run_all(tmp_path, make_job())
    before = files_of(tmp_path)
    with pytest.raises(RunError, match=f"holds another job: .*{said}") as caught:
        RunDirectory.prepare(tmp_path, make_job(**change))
    assert "or name a new directory" in str(caught.value)
    assert files_of(tmp_path) == before


TAKE = pytest.mark.parametrize("take", [RunDirectory.prepare, RunDirectory.join])


@TAKE
@pytest.mark.parametrize("more", [{"nan": "allow"}, {"on_error": "skip"}, {"nan": "allow", "on_error": "skip"}])
def test_policies_that_let_more_rows_pass_are_those_of_the_job_from_then_on(
    tmp_path: Path, take: Any, more: dict[str, Any]
) -> None:
    """The parts that are there are the same under them, since no row of theirs has failed."""
    begun = run_all(tmp_path, make_job(command="deploykit run model -o out"))
    parts = files_of(begun.parts)
    assert take(tmp_path, make_job(**more)).job == begun.job, "nothing is left to do"
    (begun.commits / "part-000003.json").unlink()
    directory = take(tmp_path, make_job(**more, command="deploykit run model -o out --forgotten"))
    flags = [f"--{name.replace('_', '-')} {policy}" for name, policy in more.items()]
    wanted = replace(begun.job, **more, command=" ".join(["deploykit run model -o out", *flags]))
    assert directory.job == RunDirectory.open(tmp_path).job == wanted
    assert [shard.index for shard in directory.missing()] == [3]
    assert files_of(directory.parts) == parts
    name, policy = next(iter(more.items()))
    if name == "on_error" and take == RunDirectory.join:
        assert take(tmp_path, make_job()).job == wanted, "one that comes later does as the others do"
    else:
        with pytest.raises(RunError, match=f"holds another job: .*{name}: '{policy}', asked for"):
            take(tmp_path, make_job())


def test_where_rows_may_have_failed_nan_are_what_they_were(tmp_path: Path) -> None:
    run_all(tmp_path, make_job(on_error="skip"))
    with pytest.raises(RunError, match="nan: 'error', asked for 'allow'"):
        RunDirectory.prepare(tmp_path, make_job(on_error="skip", nan="allow"))


@pytest.mark.parametrize(
    "options", [{}, {"write_interval": "epoch"}, {"write_interval": "epoch", "layout": "strided:2"}]
)
def test_what_a_rank_of_another_job_still_writes_does_not_count(tmp_path: Path, options: dict[str, Any]) -> None:
    """Its directory was removed while it was at work on another machine, and the next job has the place."""
    place, kept = tmp_path / "run", tmp_path / "kept"
    old = run_all(place, make_job(seed=1, **options))
    (place / "run.json").unlink()
    place.rename(kept)
    new = RunDirectory.prepare(place, make_job(**options))
    shutil.copytree(kept, place, dirs_exist_ok=True)
    assert new.job.id != old.job.id
    assert len(new.missing()) == len(new.job.plan)
    damaged = check_run(place).damaged
    assert damaged
    assert all("is of another job" in text for text in damaged)
    run_all(place, make_job(**options))
    assert files_of(place) == files_of(run_all(tmp_path / "alone", make_job(**options)).path)
    assert check_run(place).ok


def test_a_directory_whose_commits_name_no_job_is_taken_up(tmp_path: Path) -> None:
    """As those of deploykit before commits did."""
    directory = run_all(tmp_path, make_job())
    for path, name in ((tmp_path / "run.json", "id"), *((each, "job") for each in directory.commits.iterdir())):
        data = json.loads(path.read_text())
        del data[name]
        path.write_text(json.dumps(data))
    assert not RunDirectory.prepare(tmp_path, make_job()).missing()
    (directory.commits / "part-000001.json").unlink()
    assert not run_all(tmp_path, make_job()).missing()
    assert check_run(tmp_path).ok


@TAKE
def test_where_no_part_is_there_the_directory_can_be_removed(tmp_path: Path, take: Any) -> None:
    """It is refused all the same: a rank of the other job may be at work on another machine, and hold no lock."""
    RunDirectory.prepare(tmp_path, make_job())
    asked = make_job(seed=1)
    said = "No part of that job is there: remove the directory to begin anew"
    with pytest.raises(RunError, match=f"holds another job: .*seed.*{said}"):
        take(tmp_path, asked)
    (tmp_path / "spool").mkdir()
    with pytest.raises(RunError, match="holds another job: ") as drawn:
        take(tmp_path, asked)
    (tmp_path / "spool").rmdir()
    run_all(tmp_path, make_job())
    with pytest.raises(RunError, match="holds another job: ") as begun:
        take(tmp_path, asked)
    assert said not in f"{drawn.value} {begun.value}"


@pytest.mark.parametrize(("now", "is_version"), [(3, True), (4, False)])
def test_a_run_that_another_version_began_is_finished_with_that_one(tmp_path: Path, now: int, is_version: bool) -> None:
    """What it knows of the data is not what this one looks at; data of another size are other data for both."""
    run_all(tmp_path, make_job(data={"kind": "npy", "size_bytes": 3, "sha256_sample": "a", "mtime_ns": 1}))
    asked = make_job(data={"kind": "npy", "size_bytes": now, "sha256": "b"})
    said = "another version of deploykit began it, .* finish it with that version, or name a new directory"
    with pytest.raises(RunError, match=said if is_version else "holds another job: .*then 3 bytes, now 4"):
        RunDirectory.prepare(tmp_path, asked)
    elsewhere = make_job(data={"kind": "npy", "size_bytes": 3, "sha256": "b"}, data_source="s3://bucket/x.npy")
    with pytest.raises(RunError, match=r"holds another job: the data s3://bucket/x\.npy is not that of the run"):
        RunDirectory.prepare(tmp_path, elsewhere)


def test_what_may_differ_on_resume(tmp_path: Path) -> None:
    run_all(tmp_path, make_job())
    other = make_job(artifact_path="elsewhere", data_source="copy.npy", version="9", created="later")
    assert RunDirectory.prepare(tmp_path, other).missing() == []


def test_unknown_interval_and_policy() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown write interval 'step': known are batch, batch_and_epoch, epoch"
    ):
        make_job(write_interval="step")
    with pytest.raises(UnknownNameError, match="unknown NaN policy 'skip': known are allow, error"):
        make_job(nan="skip")


def test_directories_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file"):
        RunDirectory.prepare(tmp_path / "file", make_job())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(RunError, match=r"is not empty and holds no run\.json"):
        RunDirectory.prepare(tmp_path / "full", make_job())
    assert files_of(tmp_path / "full") == {"thesis.txt": b"x"}
    for name, said in {"file": "is a file", "full": r"holds no run\.json", "none": "does not exist"}.items():
        path = tmp_path / name
        with pytest.raises(RunError, match=f"{said}; name a directory that deploykit run made"):
            RunDirectory.open(path)


def test_a_link_to_nothing_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with pytest.raises(RunError, match=r"run: is a link to .*disk, which is not there; make that directory"):
        RunDirectory.prepare(tmp_path / "run", make_job())
    (tmp_path / "disk").mkdir()
    assert not run_all(tmp_path / "run", make_job()).missing()


def test_a_directory_left_right_after_its_creation_is_taken(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).touch()
    (tmp_path / ".tmp-1-run.json").write_text("{")
    run_all(tmp_path, make_job())
    assert ".tmp-1-run.json" not in files_of(tmp_path)


def test_a_file_with_a_name_like_a_locks_is_somebodys(tmp_path: Path) -> None:
    (tmp_path / f"{LOCK_NAME}-of-mine").touch()
    with pytest.raises(RunError, match=r"is not empty and holds no run\.json; name a new or empty directory"):
        RunDirectory.prepare(tmp_path, make_job())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 1}', '{"schema": 2}', "\udcff"])
def test_a_run_json_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    run_all(tmp_path, make_job())
    (tmp_path / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RunError, match=r"run\.json"):
        RunDirectory.prepare(tmp_path, make_job())


def test_a_field_of_run_json_that_is_no_such_thing_is_a_message(tmp_path: Path) -> None:
    """Whatever stands in any of the fields: it is read as that, or refused."""
    job = make_job(write_interval="epoch", writer="npy")
    run_all(tmp_path, job)
    known = job.to_json()
    changes: list[tuple[str, Any]] = [
        (name, value) for name in known for value in (None, 5, "x", [], ["x"], {}, {"x": 1})
    ]
    changes += [("plan", {**known["plan"], name: value}) for name in known["plan"] for value in (None, 0, -1, "x", 1.5)]
    refused = 0
    for name, value in changes:
        (tmp_path / "run.json").write_text(json.dumps({**known, name: value}))
        try:
            run_status(tmp_path)
            check_run(tmp_path)
        except DeploykitError as error:
            refused += 1
            assert name in str(error) or str(value) in str(error) or "run.json" in str(error)  # noqa: PT017
    assert refused > len(changes) / 2


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("parts/part-000001.npy", lambda b: b[:-1] + bytes([b[-1] ^ 1]), "SHA-256"),
        ("parts/part-000001.npy", lambda b: b[:-1], "bytes, its commit says"),
        ("parts/part-000001.npy", None, "the file is missing"),
        ("commits/part-000001.json", lambda b: b[:20], "cannot be read as JSON"),
        ("commits/part-000001.json", lambda b: b"[]", "not a JSON object"),
        ("commits/part-000001.json", lambda b: b.replace(b'"rank"', b'"rang"'), "a field is missing"),
        ("commits/part-000001.json", lambda b: b.replace(b'"start": 4', b'"start": 0'), "speaks of other rows"),
        ("commits/part-000001.json", lambda b: b.replace(b'"rows": 4', b'"rows": 3'), "speaks of other rows"),
        ("commits/part-000001.json", lambda b: b.replace(b"parts/", b"../par"), "speaks of other rows or of another"),
    ],
)
def test_damage_costs_the_part_and_is_repaired(tmp_path: Path, file: str, change: Any, said: str) -> None:
    directory = run_all(tmp_path, make_job())
    whole = files_of(tmp_path)
    if change is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(change(whole[file]))
    assert [shard.index for shard in directory.missing()] == [1]
    (damage,) = directory.state().damage
    assert said in damage
    run_all(tmp_path, make_job())
    assert files_of(tmp_path) == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shards": [4, 2, 0]}, "its shards are not in order, or not each once"),
        ({"shards": [0, 0, 2]}, "its shards are not in order, or not each once"),
        ({"shards": [0, 2]}, "speaks of other rows or of other files than the plan"),
        ({"shards": [0, 2, 5]}, "a field is missing or of another type"),
        ({"rows": 11}, "speaks of other rows"),
        ({"rank": 1}, "speaks of other rows"),
        ({"files": []}, "speaks of other rows or of other files"),
        ({"files": [{"file": "predictions_1.npy", "size_bytes": 1, "sha256": ""}]}, "of other files"),
        ({"files": [{"file": "../predictions_0.npy", "size_bytes": 1, "sha256": ""}]}, "of other files"),
    ],
)
def test_a_commit_of_a_rank_that_cannot_be_costs_its_rows(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    directory = run_all(tmp_path, make_job(write_interval="epoch"))
    path = directory.commits / "rank-0000.json"
    commit = json.loads(path.read_text())
    assert (commit["shards"], commit["rows"]) == ([0, 2, 4], 12)
    path.write_text(json.dumps({**commit, **change}))
    state = directory.state()
    (damage,) = state.damage
    assert damage.startswith("rank-0000.json: ")
    assert said in damage
    assert [shard.index for shard in directory.missing()] == [0, 2, 4]


def test_digests_can_be_left_out(tmp_path: Path) -> None:
    run_all(tmp_path, make_job())
    path = tmp_path / "parts" / "part-000001.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    directory = RunDirectory.open(tmp_path)
    assert directory.missing(check_digests=False) == []
    assert sorted(directory.state(check_digests=True).parts) == [0, 2, 3, 4]


class Failing(NpyWriter):
    """Fails after the first batch, as a full disk does."""

    error: BaseException = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:
        def cut() -> Iterator[Batch]:
            yield next(batches)
            raise self.error

        super().write(path, cut(), rows)


@pytest.mark.parametrize("stage", ["part", "epoch"])
def test_a_full_disk_says_how_to_resume(tmp_path: Path, stage: str) -> None:
    job = make_job(write_interval="epoch")
    directory = RunDirectory.prepare(tmp_path, job)
    if stage == "epoch":
        for shard in job.plan.shards():
            directory.write_part(shard, writer_of(job), batches_of(job.plan, shard), rank=0, timings={})
    before = files_of(tmp_path)
    shard = job.plan.shard(0)
    steps = {
        "part": lambda: directory.write_part(shard, Failing(OUTPUTS), batches_of(job.plan, shard), rank=0, timings={}),
        "epoch": lambda: finish_epoch(directory, Failing(OUTPUTS)),
    }
    step: Any = steps[stage]
    with pytest.raises(RunError, match=r"cannot write .*: No space left .*Free some space and give the same command"):
        step()
    assert files_of(tmp_path) == before
    assert not list(tmp_path.rglob(".tmp*"))


class Elsewhere(NpyWriter):
    """A user's writer that wants another file besides the one that it writes."""

    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:
        (path.parent / "labels.txt").read_text()


def test_another_file_that_a_users_writer_wants_is_named(tmp_path: Path) -> None:
    job = make_job()
    directory = RunDirectory.prepare(tmp_path, job)
    shard = job.plan.shard(1)
    said = r"part 1 .* raised FileNotFoundError: .*labels\.txt' \(.*test_rundir\.py:\d+\); .*mend the writer"
    with pytest.raises(RunError, match=said):
        directory.write_part(shard, Elsewhere(OUTPUTS), batches_of(job.plan, shard), rank=0, timings={})
    assert list(files_of(tmp_path)) == ["run.json"]


def test_want_of_memory_of_our_own_writers_is_none_of_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: Any) -> None:
        raise MemoryError("Unable to allocate 18.6 GiB")

    directory = RunDirectory.prepare(tmp_path, make_job())
    monkeypatch.setattr(NpyWriter, "write", write)
    said = r"npy: part 0 .* takes more memory than there is \(Unable to allocate 18.6 GiB\); .* another --writer$"
    with pytest.raises(RunError, match=said):
        directory.write_part(directory.job.plan.shard(0), NpyWriter(OUTPUTS), iter([]), rank=0, timings={})
    assert list(files_of(tmp_path)) == ["run.json"]


def test_errors_of_the_origin_pass_unchanged(tmp_path: Path) -> None:
    directory = RunDirectory.prepare(tmp_path, make_job())

    def batches() -> Iterator[Batch]:
        yield batch_of(0, 2)
        raise OSError(errno.EIO, "the data's disk")

    with pytest.raises(OSError, match="the data's disk"):
        directory.write_part(directory.job.plan.shard(0), writer_of(directory.job), batches(), rank=0, timings={})
    assert list(files_of(tmp_path)) == ["run.json"]


def wrong_dtype() -> Batch:
    batch = batch_of(4, 8)
    return Batch(sample_ids=batch.sample_ids, outputs={**batch.outputs, "label": batch.outputs["label"] * 1.0})


class Lazy(Writer):
    """Takes whatever comes, as a user's writer may."""

    extension = "lazy"

    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:
        list(batches)


@pytest.mark.parametrize("writer", [NpyWriter, Lazy])
@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([batch_of(4, 6)], "only 2 of 4 rows were taken"),
        ([], "only 0 of 4"),
        ([batch_of(4, 8), batch_of(8, 9)], "expected the sample ids from 8 on"),
        ([batch_of(6, 8), batch_of(4, 6)], r"expected the sample ids from 4 on, got \[6, 7\]"),
        ([batch_of(4, 6), batch_of(4, 6)], "expected the sample ids from 6 on"),
        ([batch_of(4, 8, (OUTPUTS[0],))], r"the model has the outputs \['logits.mean', 'label'\], got"),
        ([wrong_dtype()], r"output 'label' is float64\[4\] for 4 rows, the artifact promises label:int64\[batch\]"),
    ],
)
def test_a_part_holds_its_rows_or_nothing(
    tmp_path: Path, batches: list[Batch], said: str, writer: type[Writer]
) -> None:
    directory = RunDirectory.prepare(tmp_path, make_job())
    with pytest.raises(RunError, match=said):
        directory.write_part(directory.job.plan.shard(1), writer(OUTPUTS), batches, rank=0, timings={})
    assert list(files_of(tmp_path)) == ["run.json"]


def test_a_writer_that_writes_nothing(tmp_path: Path) -> None:
    directory = RunDirectory.prepare(tmp_path, make_job())
    shard = directory.job.plan.shard(0)
    with pytest.raises(RunError, match=r"writer Lazy: wrote no file .*lazy; .* exactly the path"):
        directory.write_part(shard, Lazy(OUTPUTS), batches_of(directory.job.plan, shard), rank=0, timings={})


class Hasty(Writer):
    extension = "hasty"

    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:
        path.write_text(str(next(batches).sample_ids))


def test_a_writer_that_stops_early_is_named(tmp_path: Path) -> None:
    directory = RunDirectory.prepare(tmp_path, make_job(writer="hasty", batch_size=2))
    shard = directory.job.plan.shard(1)
    said = r"^writer hasty: of rows 4 to 7 only 2 of 4 rows were taken; .* write has to go through all batches"
    with pytest.raises(RunError, match=said):
        directory.write_part(shard, Hasty(OUTPUTS), batches_of(directory.job.plan, shard), rank=0, timings={})
    assert list(files_of(tmp_path)) == ["run.json"]


class Foldering(Writer):
    extension = "folder"

    def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:
        path.mkdir()
        (path / "rows").write_text(str(sum(map(len, batches))))


def test_a_writer_that_makes_a_folder(tmp_path: Path) -> None:
    directory = RunDirectory.prepare(tmp_path, make_job())
    shard = directory.job.plan.shard(0)
    with pytest.raises(RunError, match=r"writer Foldering: wrote no file .*folder; .* exactly the path"):
        directory.write_part(shard, Foldering(OUTPUTS), batches_of(directory.job.plan, shard), rank=0, timings={})
    assert not list(directory.parts.iterdir()), "nothing half-written is left"


def test_a_part_without_commit_is_overwritten(tmp_path: Path) -> None:
    directory = RunDirectory.prepare(tmp_path, make_job())
    (directory.parts / "part-000000.npy").write_text("half")
    (directory.parts / ".tmp-77-part-000003.npy").write_text("half")
    run_all(tmp_path, make_job())
    run_all(tmp_path / "other", make_job())
    other = files_of(tmp_path / "other")
    assert {name: data for name, data in files_of(tmp_path).items() if not name.startswith("other")} == other


def test_timings_are_read_at_the_end(tmp_path: Path) -> None:
    directory = RunDirectory.prepare(tmp_path, make_job())
    timings: dict[str, float] = {}

    def batches() -> Iterator[Batch]:
        yield batch_of(0, 4)
        timings["infer_s"] = 2.5

    commit = directory.write_part(
        directory.job.plan.shard(0), writer_of(directory.job), batches(), rank=3, timings=timings
    )
    assert (commit.rank, commit.timings) == (3, {"infer_s": 2.5})


def test_one_row_and_no_rows(tmp_path: Path) -> None:
    for rows in (0, 1):
        for interval in ("batch", "epoch", "batch_and_epoch"):
            directory = run_all(tmp_path / f"{rows}{interval}", make_job(rows=rows, write_interval=interval))
            assert is_finished(directory)
            found = {name for name in files_of(directory.path) if name.endswith(".npy")}
            parts = {"parts/part-000000.npy"} if interval != "epoch" else set()
            assert found == (set() if not rows else parts | ({"predictions_0.npy"} if interval != "batch" else set()))


class TestEpoch:
    def test_rank_files_hold_each_row_once(self, tmp_path: Path) -> None:
        for interval in ("epoch", "batch_and_epoch"):
            directory = run_all(tmp_path / interval, make_job(write_interval=interval), ranks=2)
            ids = [np.load(directory.path / f"predictions_{rank}.npy")["sample_id"].tolist() for rank in (0, 1)]
            assert ids == [[0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19], [4, 5, 6, 7, 12, 13, 14, 15]]
            assert len(list(directory.parts.iterdir())) == (0 if interval == "epoch" else 5)
            assert json.loads((directory.commits / "rank-0001.json").read_text())["shards"] == [1, 3]

    @pytest.mark.parametrize(
        ("place", "written"),
        [
            ("results.npy", True),
            ("predictions_1.npy", True),
            ("../predictions_0.npy", True),
            ("deeper/predictions_0.npy", True),
            ("predictions_0.npy", False),
        ],
    )
    def test_files_of_a_users_writer_have_their_names_and_place(
        self, tmp_path: Path, place: str, written: bool
    ) -> None:
        class Own(NpyWriter):
            def write_epoch(self, directory: Path, rank: int, batches: Iterator[Batch], rows: int) -> list[Path]:
                list(batches)
                path = directory / place
                if written:
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(b"rows")
                return [path]

        job = make_job(write_interval="epoch")
        said = rf"writer Own: write_epoch gave {Path(place).name}; it must write predictions_0 or batch_indices_0"
        with pytest.raises(RunError, match=said):
            run_all(tmp_path, job, writer=Own(OUTPUTS))
        assert not list(tmp_path.rglob(".tmp*"))
        assert not list(tmp_path.glob("commits/rank-*"))
        assert is_finished(run_all(tmp_path, job)), "the parts are there still"

    def test_a_users_writer_that_stops_early_costs_no_rows(self, tmp_path: Path) -> None:
        class First(NpyWriter):
            def write_epoch(self, directory: Path, rank: int, batches: Iterator[Batch], rows: int) -> list[Path]:
                return super().write_epoch(directory, rank, iter([next(batches)]), 2)

        job = make_job(write_interval="epoch")
        with pytest.raises(RunError, match="writer First: has not taken all of the 20 rows of the file of rank 0"):
            run_all(tmp_path, job, ranks=1, writer=First(OUTPUTS))
        assert not list(tmp_path.glob("predictions_*"))
        assert is_finished(run_all(tmp_path, job)), "the parts are there still"

    @pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks /proc for the path of a descriptor")
    def test_rows_are_on_the_disk_in_their_new_place_before_their_old_one_goes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = make_job(write_interval="epoch")
        directory = RunDirectory.prepare(tmp_path, job)
        for shard in job.plan.shards():
            directory.write_part(shard, writer_of(job), batches_of(job.plan, shard), rank=0, timings={})
        events: list[tuple[str, str]] = []
        flush, rename, unlink = os.fsync, os.replace, Path.unlink

        def noted(kind: str, path: Any) -> None:
            events.append((kind, Path(path).relative_to(tmp_path).name))

        def fsync(descriptor: int) -> None:
            noted("flush", Path(f"/proc/self/fd/{descriptor}").readlink())
            flush(descriptor)

        def moved(source: Path, target: Path) -> None:
            noted("rename", target)
            rename(source, target)

        def removed(path: Path, missing_ok: bool = False) -> None:
            noted("remove", path)
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", moved)
        monkeypatch.setattr(Path, "unlink", removed)
        finish_epoch(directory, writer_of(job))
        steps = [
            ("flush", "predictions_0.npy"), ("rename", "predictions_0.npy"), ("flush", ""),
            ("rename", "rank-0000.json"), ("flush", "commits"), ("remove", "part-000000.json"),
        ]  # fmt: skip
        assert [event for event, _ in groupby(event for event in events if event in steps)] == steps
        assert events.index(("remove", "part-000000.npy")) > events.index(steps[-1])

    def test_again_changes_nothing(self, tmp_path: Path) -> None:
        directory = run_all(tmp_path, make_job(write_interval="epoch"))
        stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
        finish_epoch(directory, writer_of(directory.job))
        assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}

    def test_strays_are_removed(self, tmp_path: Path) -> None:
        """A reader who globs for predictions_* must not see rows twice."""
        directory = run_all(tmp_path, make_job(write_interval="epoch"))
        whole = files_of(tmp_path)
        (tmp_path / "predictions_7.npy").write_bytes(whole["predictions_0.npy"])
        commit = json.loads(whole["commits/rank-0001.json"])
        (tmp_path / "commits" / "rank-0007.json").write_text(json.dumps({**commit, "rank": 7}))
        assert directory.state().damage
        finish_epoch(directory, writer_of(directory.job))
        assert files_of(tmp_path) == whole

    def test_a_lost_rank_file_is_computed_again_by_whoever_is_there(self, tmp_path: Path) -> None:
        run_all(tmp_path, make_job(write_interval="epoch"), ranks=3)
        (tmp_path / "predictions_1.npy").unlink()
        directory = RunDirectory.prepare(tmp_path, make_job(write_interval="epoch"))
        assert [shard.index for shard in directory.missing()] == [1, 4]
        with pytest.raises(IncompleteRunError, match="rows 4 to 7, rows 16 to 19 missing"):
            finish_epoch(directory, writer_of(directory.job))
        run_all(tmp_path, make_job(write_interval="epoch"), ranks=1)
        assert not (tmp_path / "commits" / "rank-0001.json").exists()
        ids = np.load(tmp_path / "predictions_0.npy")["sample_id"]
        assert ids.tolist() == [*range(8), *range(12, 20)]
        assert is_finished(directory)

    def test_batch_interval_has_none(self, tmp_path: Path) -> None:
        directory = run_all(tmp_path, make_job())
        with pytest.raises(RunError, match="its write interval is batch"):
            finish_epoch(directory, writer_of(directory.job))


def test_outputs_with_dynamic_dimensions(tmp_path: Path) -> None:
    spec = TensorSpec(name="tokens", dtype="float16", shape=("batch", "seq", 2))
    directory = run_all(tmp_path, make_job(outputs=(spec,)))
    assert np.load(directory.parts / "part-000000.npy")["tokens"].shape == (4, 2, 2)


def test_many_processes_may_create_one_directory(tmp_path: Path) -> None:
    """Whoever is first, all see one and the same job, and nobody mistakes another's beginnings for something else."""
    for attempt in range(20):
        path, barrier = tmp_path / f"{attempt}" / "r", threading.Barrier(8)

        def join(number: int, path: Path = path, barrier: threading.Barrier = barrier) -> str:
            barrier.wait()
            return RunDirectory.join(path, make_job(created=f"by {number}")).job.created

        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(join, range(8)))) == 1
        assert not list(path.rglob(".tmp*"))


def test_a_file_system_without_hard_links_is_named_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(RunError, match=r"its file system has no hard links .*name a directory on one that has them"):
        RunDirectory.join(tmp_path / "r", make_job())
    assert not list(tmp_path.rglob("*.json"))


def test_joining_refuses_another_job_and_leaves_what_others_write(tmp_path: Path) -> None:
    first = RunDirectory.join(tmp_path / "r", make_job())
    (first.parts / ".tmp-77-part-000003.npy").write_text("half")
    RunDirectory.join(tmp_path / "r", make_job())
    assert (first.parts / ".tmp-77-part-000003.npy").exists()
    with pytest.raises(RunError, match="seed: 0, asked for 1"):
        RunDirectory.join(tmp_path / "r", make_job(seed=1))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(RunError, match="not empty"):
        RunDirectory.join(tmp_path / "other", make_job())
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_rows_of_commits_are_counted_by_name(tmp_path: Path) -> None:
    directory = run_all(tmp_path / "r", make_job(rows=10))
    assert directory.committed_rows() == 10
    assert directory.committed_rows(without={1}) == 6
    (directory.commits / "part-junk.json").touch()
    (directory.commits / "part-000099.json").touch()
    assert directory.committed_rows() == 10


def test_finishing_leaves_what_other_ranks_write_beside_the_logs(tmp_path: Path) -> None:
    directory = RunDirectory.join(tmp_path / "r", make_job())
    half = [directory.parts / ".tmp-1-a.npy", directory.path / "logs" / ".tmp-1-rank-1.measured.json"]
    half[1].parent.mkdir()
    for file in half:
        file.touch()
    directory.clean()
    assert [file.exists() for file in half] == [False, True]
    RunDirectory.prepare(tmp_path / "r", make_job())
    assert not half[1].exists(), "a run that is alone removes it"


def test_an_error_of_the_rows_stays_one_whatever_a_writer_makes_of_it(tmp_path: Path) -> None:
    class Wrapping(Writer):
        extension = "txt"

        def write(self, path: Path, batches: Iterator[Batch], rows: int) -> None:
            try:
                list(batches)
            except RunError as error:
                raise ValueError("wrapped") from error

    def rows() -> Iterator[Batch]:
        raise RunError("the model failed") from KeyError("cause")
        yield

    job = make_job()
    directory = RunDirectory.prepare(tmp_path / "r", job)
    with pytest.raises(RunError, match="the model failed") as raised:
        directory.write_part(job.plan.shard(0), Wrapping(job.outputs), rows(), rank=0, timings={})
    assert isinstance(raised.value.__cause__, KeyError)


def test_of_many_files_those_that_were_touched_are_named(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("x\n1\n")
        os.utime(tmp_path / name, (1, 1))
    data = {"kind": "csv", "files": 2, "sha256_files": "one", "size_bytes": 8}
    job = make_job(data=data, data_source=str(tmp_path / "*.csv"))
    RunDirectory.prepare(tmp_path / "run", job)
    (tmp_path / "b.csv").touch()
    touched = replace(job, data={**data, "sha256_files": "other"})
    with pytest.raises(RunError, match=r"in all \(changed since: \S*/b\.csv\)\. If these are copies of the same"):
        RunDirectory.prepare(tmp_path / "run", touched)


def test_another_first_name_of_images_is_told_in_words(tmp_path: Path) -> None:
    names = [{"kind": "images", "first_name": name} for name in ("1.png", "a/1.png")]
    RunDirectory.prepare(tmp_path, make_job(data=names[0]))
    with pytest.raises(
        RunError, match=r"holds another job: the name of the first file: '1\.png', asked for 'a/1\.png'"
    ):
        RunDirectory.prepare(tmp_path, make_job(data=names[1]))
