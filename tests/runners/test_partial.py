"""Ranks that a launcher starts and that share nothing but a store: what they leave there is what any run leaves."""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import deploykit
from deploykit.errors import DataError, DeploykitError, IncompleteRunError, RunError, UsageError
from deploykit.runs.rundir import RunDirectory
from deploykit.storage.stores import Store
from runners import mirror, partial
from runners.engines.base import Engine
from runners.engines.local import LocalEngine
from runners.partial import PartialMirror
from runners.pipeline.batchsize import Probe
from tests import handmade

SLOW = f"{Path(__file__).parent / 'slowdata.py'}:make"
ROWS, SHARDS = 64, 8
SIZE: dict[str, Any] = {"batch_size": 4, "shard_rows": 8}
OPTIONS = ("--batch-size", "4", "--shard-rows", "8", "--engine", "array")
INTERVALS = ["batch", "epoch", "batch_and_epoch"]


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    def become(rank: int, world_size: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world_size))

    return become


@pytest.fixture
def mc(artifact_paths: dict[str, Path]) -> Path:
    return artifact_paths["mc"]


@pytest.fixture(scope="module")
def whole(artifact_paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The parts of one machine."""
    path = tmp_path_factory.mktemp("whole") / "run"
    deploykit.run(artifact_paths["mc"], SLOW, path, **SIZE, engine="local")
    return {f"parts/{part.name}": part.read_bytes() for part in (path / "parts").iterdir()}


def files(url: str, *folders: str) -> dict[str, bytes]:
    filesystem, root = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    found = {path.removeprefix(root).lstrip("/"): path for path in filesystem.find(root)}
    return {name: filesystem.cat_file(path) for name, path in found.items() if name.startswith(folders or "")}


def parts(url: str) -> dict[str, bytes]:
    return files(url, "parts/")


def store(url: str) -> Store:
    return Store(url, "run directory", RunError)


def put(url: str, name: str, content: bytes) -> None:
    filesystem, root = fsspec.core.url_to_fs(url)
    filesystem.pipe_file(f"{root}/{name}", content)


def start(artifact: Path, url: str, rank: int, world_size: int, *options: str, **environment: str) -> Any:
    """A rank in a process of its own, which sends what it has more often than others do."""
    command = [sys.executable, "-W", "error", "-c", OFTEN, "run", artifact, "--data", SLOW, "-o", url]
    names = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [*command, *OPTIONS, *options],
        env={**os.environ, **names, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


OFTEN = """
import sys
from runners import mirror, partial
mirror.PERIOD_S = partial.LOOK_S = 0.1
from deploykit.cli import main
main(sys.argv[1:])
"""


def ended(process: Any, code: int = 0) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    return str(out + err)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize("interval", INTERVALS)
def test_ranks_one_after_the_other_leave_what_one_machine_leaves(
    mc: Path, bucket: str, tmp_path: Path, whole: dict[str, bytes], interval: str,
    as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The last one need not have the last number; only it copies predictions, and only where files are joined."""
    copied: list[str] = []
    fetch = Store.fetch

    def watched(self: Store, names: Iterable[str], *rest: Any) -> None:
        names = list(names)
        copied.extend(name for name in names if name.startswith("parts/"))
        fetch(self, names, *rest)

    monkeypatch.setattr(Store, "fetch", watched)
    for done, rank in enumerate([2, 0, 1]):
        as_rank(rank, 3)
        result = deploykit.run(mc, SLOW, bucket, **SIZE, engine="array", write_interval=interval)
        assert (result.path, result.computed_rows) == (bucket, {0: 24, 1: 24, 2: 16}[rank])
        if done < 2:
            assert result.missing_shards > 0
            assert re.search(rf"missing: rows .* -o {bucket}", result.notes[-1])
            assert copied == []
            assert not files(bucket, "report")
    assert result.missing_shards == 0
    assert "finished the job" in result.notes[-1]
    assert (copied == []) == (interval == "batch")
    assert deploykit.verify(bucket).committed_rows == ROWS
    report = json.loads(files(bucket, "report.json")["report.json"])
    assert ([rank["rank"] for rank in report["ranks"]], report["rows"]) == ([0, 1, 2], ROWS)
    assert parts(bucket) == ({} if interval == "epoch" else whole)
    names = [name for name in files(bucket) if name.startswith("predictions_")]
    assert names == ([] if interval == "batch" else [f"predictions_{rank}.npy" for rank in range(3)])
    assert deploykit.status(bucket).state == "finished"
    local = deploykit.run(mc, SLOW, tmp_path / "run", **SIZE, engine="local")
    merged = [deploykit.merge(path, tmp_path / f"{n}.npz") for n, path in enumerate([bucket, local.path])]
    with np.load(merged[0]) as ours, np.load(merged[1]) as theirs:
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs.files)


def test_ranks_that_begin_at_the_same_time_share_the_work(mc: Path, bucket: str, whole: dict[str, bytes]) -> None:
    ranks = [start(mc, bucket, rank, 3) for rank in range(3)]
    texts = [ended(rank) for rank in ranks]
    assert "finished the job" in "".join(texts)
    assert parts(bucket) == whole
    assert deploykit.verify(bucket).committed_rows == ROWS
    commits = [json.loads(content) for content in files(bucket, "commits/").values()]
    assert [commit["shard"] % 3 for commit in commits] == [commit["rank"] for commit in commits]
    assert not [name for name in files(bucket) if ".lock" in name or "tmp" in name or "writable" in name]
    assert json.loads(files(bucket, "report.json")["report.json"])["complete"]


@pytest.mark.slow
@pytest.mark.parametrize("interval", [pytest.param("batch", marks=pytest.mark.exhaustive), "epoch"])
def test_a_rank_that_is_killed_is_started_again(
    mc: Path, bucket: str, tmp_path: Path, whole: dict[str, bytes], interval: str
) -> None:
    """As Kubernetes does; on another machine, where nothing is but what is at the URL."""
    options = ("--write-interval", interval)
    killed = start(mc, bucket, 1, 2, *options, SLOW_S="0.1")
    other = start(mc, bucket, 0, 2, *options)
    wait_for(lambda: any(json.loads(text)["rank"] == 1 for text in files(bucket, "commits/part").values()))
    killed.kill()
    ended(killed, -signal.SIGKILL)
    assert "missing: rows" in ended(other)
    there = len(files(bucket, "commits/part"))
    assert SHARDS // 2 < there < SHARDS
    again = ended(start(mc, bucket, 1, 2, *options))
    assert f"{ROWS - 8 * there} computed now" in again
    assert "finished the job" in again
    assert deploykit.verify(bucket).committed_rows == ROWS
    assert parts(bucket) == (whole if interval == "batch" else {})
    deploykit.run(mc, SLOW, tmp_path / "run", **SIZE, engine="local")
    merged = [deploykit.merge(path, tmp_path / f"{n}.npz") for n, path in enumerate([bucket, tmp_path / "run"])]
    with np.load(merged[0]) as ours, np.load(merged[1]) as theirs:
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs.files)
    # Both attempts are in its log.
    lines = files(bucket, "logs/rank-1.jsonl")["logs/rank-1.jsonl"].decode().splitlines()
    assert [json.loads(line)["event"] for line in lines].count("start") == 2


@pytest.mark.slow
def test_sigterm_finishes_the_shard_sends_it_and_says_how_to_resume(mc: Path, bucket: str) -> None:
    process = start(mc, bucket, 1, 2, SLOW_S="0.1")
    wait_for(lambda: files(bucket, "commits/"))
    process.terminate()
    text = ended(process, 128 + signal.SIGTERM)
    assert re.search(rf"^Error: run directory {bucket}: stopped by SIGTERM\nrank 1 of 2 ends; ", text, re.MULTILINE)
    assert f"-o {bucket}" in text
    there = len(files(bucket, "commits/"))
    assert f"{there} of {SHARDS} parts are there" in text
    assert not deploykit.status(bucket).damage
    assert f"{ROWS // 2 - 8 * there} computed now" in ended(start(mc, bucket, 1, 2))


def test_what_is_damaged_or_lost_is_computed_again_by_its_rank(
    mc: Path, bucket: str, whole: dict[str, bytes], as_rank: Callable[[int, int], None]
) -> None:
    deploykit.run(mc, SLOW, bucket, **SIZE, engine="local")
    put(bucket, "parts/part-000002.npy", whole["parts/part-000002.npy"][:-1] + b"?")
    put(bucket, "parts/part-000003.npy", whole["parts/part-000003.npy"][:-1])
    store(bucket).remove(["parts/part-000004.npy", "commits/part-000005.json"])
    computed = []
    for rank in range(2):
        as_rank(rank, 2)
        computed.append(deploykit.run(mc, SLOW, bucket, **SIZE).computed_rows)
    assert computed == [16, 16]
    assert parts(bucket) == whole
    assert deploykit.verify(bucket).committed_rows == ROWS


def test_a_damaged_file_of_a_rank_is_written_again_by_other_ranks(
    mc: Path, bucket: str, as_rank: Callable[[int, int], None]
) -> None:
    options = {**SIZE, "write_interval": "epoch"}
    for rank in range(2):
        as_rank(rank, 2)
        deploykit.run(mc, SLOW, bucket, **options)
    whole = files(bucket, "predictions_")
    put(bucket, "predictions_1.npy", whole["predictions_1.npy"][:-1] + b"?")
    for rank in range(3):
        as_rank(rank, 3)
        # Whoever comes before the last one finds rows missing.
        with contextlib.suppress(IncompleteRunError):
            result = deploykit.run(mc, SLOW, bucket, **options)
    assert "finished the job" in result.notes[-1]
    assert deploykit.verify(bucket).committed_rows == ROWS
    assert files(bucket, "parts/") == {}


def asked_of_stores(monkeypatch: pytest.MonkeyPatch, beginning: str) -> list[str]:
    """The names of files with this beginning that are copied from now on."""
    asked: list[str] = []
    fetch = Store.fetch

    def watched(self: Store, names: Iterable[str], folder: Path) -> None:
        names = list(names)
        asked.extend(name for name in names if name.startswith(beginning))
        fetch(self, names, folder)

    monkeypatch.setattr(Store, "fetch", watched)
    return asked


def test_only_what_a_rank_asks_for_is_copied(
    mc: Path, bucket: str, tmp_path: Path, as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that is started again reads its own parts, as proof that they are whole, and no others."""
    deploykit.run(mc, SLOW, bucket, **SIZE, engine="local")
    asked = asked_of_stores(monkeypatch, "parts/")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    as_rank(1, 3)
    assert deploykit.run(mc, SLOW, bucket, **SIZE).computed_rows == 0
    assert sorted(asked) == [f"parts/part-{number:06}.npy" for number in (1, 4, 7)]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("deploykit-")]


def test_a_rank_that_comes_to_a_finished_job_copies_the_files_of_no_others(
    mc: Path, bucket: str, as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**SIZE, "write_interval": "epoch"}
    for rank in range(3):
        as_rank(rank, 3)
        deploykit.run(mc, SLOW, bucket, **options)
    asked = asked_of_stores(monkeypatch, "predictions_")
    for rank in range(3):
        as_rank(rank, 3)
        assert deploykit.run(mc, SLOW, bucket, **options).computed_rows == 0
    assert asked == [f"predictions_{rank}.npy" for rank in range(3)]


@pytest.mark.parametrize("interval", INTERVALS)
def test_whoever_comes_to_a_job_with_every_part_finishes_it(
    mc: Path, bucket: str, interval: str, as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last rank was killed after its last part and before the end."""
    options = {**SIZE, "write_interval": interval}
    as_rank(0, 2)
    deploykit.run(mc, SLOW, bucket, **options)
    as_rank(1, 2)
    with monkeypatch.context() as patch:
        patch.setattr("runners.engines.launched.finish_together", lambda *_, **__: None)
        deploykit.run(mc, SLOW, bucket, **options)
    assert not files(bucket, "report")
    result = deploykit.run(mc, SLOW, bucket, **options)
    assert (result.computed_rows, result.missing_shards) == (0, 0)
    assert deploykit.verify(bucket).committed_rows == ROWS
    assert json.loads(files(bucket, "report.json")["report.json"])["complete"]
    before = files(bucket, "report", "parts/", "commits/", "predictions")
    for rank in range(2):
        as_rank(rank, 2)
        assert deploykit.run(mc, SLOW, bucket, **options).computed_rows == 0
    assert files(bucket, "report", "parts/", "commits/", "predictions") == before


@pytest.mark.parametrize("first", ["commits/", "parts/"])
def test_parts_that_are_not_removed_yet_are_removed_by_whoever_comes(
    mc: Path, bucket: str, first: str, as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last rank was killed when the files of the ranks were there and the parts were still there, too."""
    options = {**SIZE, "write_interval": "epoch"}
    remove = Store.remove

    def failing(self: Store, names: Iterable[str]) -> None:
        names = list(names)
        if any(name.startswith(first) for name in names):
            raise RunError("the network is down")
        remove(self, names)

    as_rank(0, 2)
    deploykit.run(mc, SLOW, bucket, **options)
    as_rank(1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "PAUSE_S", 0)
        patch.setattr(Store, "remove", failing)
        with pytest.raises(RunError, match="the network is down"):
            deploykit.run(mc, SLOW, bucket, **options)
    assert len(parts(bucket)) == SHARDS
    assert deploykit.run(mc, SLOW, bucket, **options).computed_rows == 0
    assert parts(bucket) == {}
    assert deploykit.verify(bucket).committed_rows == ROWS


def test_rows_that_fail_are_left_out(
    artifact: Path, bucket: str, as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAD_NAN", "5,17,33")
    faulty = f"{Path(__file__).parent / 'faultydata.py'}:make"
    found = []
    for rank in range(2):
        as_rank(rank, 2)
        found.append(deploykit.run(artifact, faulty, bucket, batch_size=8, shard_rows=16, on_error="skip"))
    assert (found[1].missing_shards, found[1].failed_rows) == (0, 3)
    assert len(files(bucket, "failed.jsonl")["failed.jsonl"].splitlines()) == 3
    assert len(deploykit.verify(bucket).failed) == 3


def test_a_rank_that_failed_goes_on_without_such_rows_and_the_others_as_they_were(
    artifact: Path, bucket: str, tmp_path: Path, as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It alone is submitted again, with ``--on-error skip``, while another one is at work."""
    monkeypatch.setenv("BAD_NAN", "1")
    faulty = f"{Path(__file__).parent / 'faultydata.py'}:make"
    options: dict[str, Any] = {"batch_size": 8, "shard_rows": 16}
    as_rank(0, 2)
    with pytest.raises(DataError, match=r"give the same command again with .*--on-error skip"):
        deploykit.run(artifact, faulty, bucket, **options)
    begun = json.loads(files(bucket, "run.json")["run.json"])
    other = PartialMirror(store(bucket), tmp_path / "other" / "run", 1)
    other.fetch()
    other.joined(lambda: RunDirectory.open(other.copy))
    result = deploykit.run(artifact, faulty, bucket, **options, on_error="skip")
    assert (result.failed_rows, result.missing_shards) == (1, 2)
    other.send()
    now = json.loads(files(bucket, "run.json")["run.json"])
    assert {**now, "command": ""} == {**begun, "on_error": "skip", "command": ""}
    as_rank(1, 2)
    assert deploykit.run(artifact, faulty, bucket, **options, on_error="skip").missing_shards == 0
    assert set(deploykit.verify(bucket).failed) == {1}


def test_the_list_of_rows_that_failed_goes_when_none_does(
    artifact: Path, bucket: str, as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = f"{Path(__file__).parent / 'faultydata.py'}:make"
    for bad in ("5", ""):
        monkeypatch.setenv("BAD_NAN", bad)
        for rank in range(2):
            as_rank(rank, 2)
            deploykit.run(artifact, faulty, bucket, batch_size=8, shard_rows=16, on_error="skip")
        assert list(files(bucket, "failed")) == (["failed.jsonl"] if bad else [])
        store(bucket).remove(["commits/part-000000.json"])


class TestTheFirstJobCounts:
    """Of ranks that begin at the same time, each finds nothing at the URL."""

    def begun(self, url: str, tmp_path: Path, rank: int) -> PartialMirror:
        found = PartialMirror(store(url), tmp_path / str(rank) / "run", rank)
        found.fetch()
        return found

    def test_of_other_values_the_second_rank_is_refused_before_its_first_row(
        self, mc: Path, bucket: str, as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        as_rank(0, 2)
        deploykit.run(mc, SLOW, bucket, **SIZE)
        before = files(bucket, "parts/", "commits/", "run.json")
        as_rank(1, 2)
        # It has looked before the first one began.
        monkeypatch.setattr(PartialMirror, "fetch", lambda _: None)
        with pytest.raises(RunError, match=rf"^run directory {bucket}: holds another job: seed: 7, asked for 8"):
            deploykit.run(mc, SLOW, bucket, **SIZE, seed=8)
        assert files(bucket, "parts/", "commits/", "run.json") == before

    def test_the_batch_size_that_a_rank_found_is_that_of_all(
        self, mc: Path, bucket: str, as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def probe(*_: object, **__: object) -> Probe:
            """While this rank looks, another one has begun the job."""
            as_rank(0, 2)
            deploykit.run(mc, SLOW, bucket, **SIZE)
            as_rank(1, 2)
            return Probe(size=2, rows_per_s={2: 1.0}, too_large=None)

        monkeypatch.setattr("runners.job.probe_batch_size", probe)
        as_rank(1, 2)
        result = deploykit.run(mc, SLOW, bucket, batch_size="auto", shard_rows=8)
        assert "batch size 4 all the same, as another rank found it first" in result.notes
        assert deploykit.verify(bucket).committed_rows == ROWS

    def test_where_a_store_keeps_the_last_one_the_first_rank_sees_it_and_stops(
        self, mc: Path, bucket: str, tmp_path: Path, as_rank: Callable[[int, int], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(mirror, "PAUSE_S", 0)
        deploykit.run(mc, SLOW, tmp_path / "other", **SIZE, seed=8)
        trade = PartialMirror.trade

        def late(self: PartialMirror) -> None:
            put(bucket, "run.json", (tmp_path / "other" / "run.json").read_bytes())
            trade(self)

        monkeypatch.setattr(PartialMirror, "trade", late)
        as_rank(0, 1)
        with pytest.raises(RunError, match=rf"^run directory {bucket}: holds another job: seed: 8, asked for 7"):
            deploykit.run(mc, SLOW, bucket, **SIZE)
        assert parts(bucket) == {}

    def test_a_rank_that_the_sender_finds_refused_begins_no_further_shard(
        self, mc: Path, bucket: str, tmp_path: Path, as_rank: Callable[[int, int], None],
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        monkeypatch.setattr(mirror, "PERIOD_S", 0.01)
        monkeypatch.setenv("SLOW_ROWS", "512")  # Some shards are read ahead.
        deploykit.run(mc, SLOW, tmp_path / "other", **SIZE, seed=8)
        seen: list[PartialMirror] = []
        joined = PartialMirror.joined

        def noted(self: PartialMirror, join: Any) -> Any:
            seen.append(self)
            return joined(self, join)

        def told(*_: int) -> None:
            put(bucket, "run.json", (tmp_path / "other" / "run.json").read_bytes())
            wait_for(lambda: seen[0]._refused)

        monkeypatch.setattr(PartialMirror, "joined", noted)
        as_rank(0, 1)
        with pytest.raises(RunError, match=rf"^run directory {bucket}: holds another job: seed: 8") as failed:
            deploykit.run(mc, SLOW, bucket, **SIZE, progress=told)
        kept = re.search(r"is in (\S+): never copy it there; copy it to a new place", str(failed.value))
        assert kept is not None
        assert len(list((Path(kept[1]) / "parts").iterdir())) < 512 // SIZE["shard_rows"]
        assert "tried again" not in capsys.readouterr().err


def test_two_ranks_that_both_find_every_part_leave_one_result(
    mc: Path, bucket: str, as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one has them copied to join them, the other has joined them and removed the parts."""
    options = {**SIZE, "write_interval": "epoch"}
    as_rank(0, 2)
    deploykit.run(mc, SLOW, bucket, **options)
    bring, came = PartialMirror.bring, []

    def slow(self: PartialMirror, names: Collection[str]) -> None:
        if len(names) > 1 and not came:
            came.append(names)
            as_rank(0, 2)
            deploykit.run(mc, SLOW, bucket, **options)
            as_rank(1, 2)
            assert parts(bucket) == {}
        bring(self, list(names))

    monkeypatch.setattr(PartialMirror, "bring", slow)
    as_rank(1, 2)
    result = deploykit.run(mc, SLOW, bucket, **options)
    assert came
    assert "finished the job" in result.notes[-1]
    assert deploykit.verify(bucket).committed_rows == ROWS
    assert sorted(files(bucket, "predictions", "parts/")) == ["predictions_0.npy", "predictions_1.npy"]


def test_a_rank_that_comes_while_another_joins_the_parts_computes_none_again(
    mc: Path, bucket: str, as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**SIZE, "write_interval": "epoch"}
    with monkeypatch.context() as patch:
        patch.setattr("runners.engines.launched.finish_together", lambda *_, **__: None)
        for rank in range(2):
            as_rank(rank, 2)
            deploykit.run(mc, SLOW, bucket, **options)
    there, came = PartialMirror._there, []

    def listed(self: PartialMirror) -> dict[str, int]:
        found = there(self)
        if not came:
            came.append(None)
            as_rank(0, 2)
            deploykit.run(mc, SLOW, bucket, **options)
            assert parts(bucket) == {}
        return found

    as_rank(1, 2)
    monkeypatch.setattr(PartialMirror, "_there", listed)
    result = deploykit.run(mc, SLOW, bucket, **options)
    assert came
    assert (result.computed_rows, result.missing_shards) == (0, 0)
    assert deploykit.verify(bucket).committed_rows == ROWS


def test_parts_that_were_computed_again_after_they_were_joined_are_removed_by_any_rank(
    mc: Path, bucket: str, as_rank: Callable[[int, int], None]
) -> None:
    """Whoever computed them was killed before it ended."""
    options = {**SIZE, "write_interval": "epoch"}
    as_rank(1, 2)
    deploykit.run(mc, SLOW, bucket, **options)
    again = files(bucket, "parts/", "commits/")
    as_rank(0, 2)
    deploykit.run(mc, SLOW, bucket, **options)
    for name, content in again.items():
        put(bucket, name, content)
    as_rank(1, 2)
    assert deploykit.run(mc, SLOW, bucket, **options).computed_rows == 0
    assert parts(bucket) == {}
    assert deploykit.verify(bucket).committed_rows == ROWS
    assert deploykit.status(bucket).state == "finished"


@pytest.mark.parametrize("listed", [[], ["b", "c"], ["a", "b", "c"]])
def test_of_files_that_are_gone_the_others_come_together(
    bucket: str, tmp_path: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where the store lists what it does not have they come one by one."""
    for name in ["b", "c"]:
        put(bucket, f"commits/{name}", b"content")
    made = PartialMirror(store(bucket), tmp_path / "copy" / "run", 0)
    fetch, asked = Store.fetch, []

    def watched(self: Store, names: Iterable[str], folder: Path) -> None:
        asked.append("".join(name[-1] for name in names))
        fetch(self, names, folder)

    monkeypatch.setattr(Store, "fetch", watched)
    monkeypatch.setattr(Store, "files", lambda _: {f"commits/{name}": 7 for name in listed})
    assert not made._fetch([f"commits/{name}" for name in "abc"])
    assert asked == {0: ["abc"], 2: ["abc", "bc"], 3: ["abc", "a", "b", "c"]}[len(listed)]
    found = sorted(path.name for path in made.copy.glob("commits/*"))
    assert found == (["b", "c"] if listed else [])


def test_parts_that_were_joined_are_not_looked_for_again(
    mc: Path, bucket: str, as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are at the URL until the end, when the report is written."""
    monkeypatch.setattr(mirror, "PERIOD_S", 0.01)
    monkeypatch.setattr(partial, "LOOK_S", 0.0)
    sent = mirror.Mirror.send
    looked: list[None] = []

    def send(self: mirror.Mirror) -> None:
        sent(self)
        looked.append(None)

    def report(*_: Any) -> None:
        before = len(looked)
        wait_for(lambda: len(looked) > before + 2)

    as_rank(0, 2)
    deploykit.run(mc, SLOW, bucket, **SIZE, write_interval="epoch")
    monkeypatch.setattr(mirror.Mirror, "send", send)
    monkeypatch.setattr("runners.engines.finish.write_report", report)
    as_rank(1, 2)
    deploykit.run(mc, SLOW, bucket, **SIZE, write_interval="epoch")
    assert deploykit.verify(bucket).committed_rows == ROWS


def test_what_others_do_is_seen_meanwhile(
    mc: Path, bucket: str, as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PERIOD_S", 0.01)
    monkeypatch.setattr(partial, "LOOK_S", 0.0)
    monkeypatch.setattr(partial, "COSTS", 0)
    monkeypatch.setattr("runners.engines.launched.LOOK_S", 0.0)
    see = PartialMirror._see
    seen: list[int] = []
    looked: list[None] = []

    def watched(self: PartialMirror) -> None:
        see(self)
        looked.append(None)

    def told(done: int, _: int) -> None:
        if not seen:
            as_rank(1, 2)
            deploykit.run(mc, SLOW, bucket, **SIZE)
            as_rank(0, 2)
            looked.clear()
            wait_for(lambda: len(looked) > 1)
        seen.append(done)

    monkeypatch.setattr(PartialMirror, "_see", watched)
    as_rank(0, 2)
    deploykit.run(mc, SLOW, bucket, **SIZE, progress=told)
    assert max(seen) == ROWS


def test_a_store_that_fails_leaves_on_this_machine_what_the_rank_did(
    mc: Path, bucket: str, whole: dict[str, bytes], as_rank: Callable[[int, int], None],
    no_commits: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:  # fmt: skip
    """And nothing that would damage what others did, where somebody copies it to the URL."""
    as_rank(0, 2)
    deploykit.run(mc, SLOW, bucket, **SIZE)
    as_rank(1, 2)
    said = rf"^run directory {bucket}: cannot .*\nWhat this rank has computed is in"
    with no_commits(), pytest.raises(RunError, match=said) as e:
        deploykit.run(mc, SLOW, bucket, **SIZE)
    kept = re.search(r"is in (\S+): copy it there, or give the same command again", str(e.value))
    assert kept is not None
    numbers = [int(part.stem.removeprefix("part-")) for part in (Path(kept[1]) / "parts").iterdir()]
    assert sorted(numbers) == list(range(1, SHARDS, 2))
    fsspec.core.url_to_fs(bucket)[0].put(f"{kept[1]}/", f"{bucket}/", recursive=True)
    assert parts(bucket) == whole
    assert deploykit.run(mc, SLOW, bucket, **SIZE).computed_rows == 0
    assert deploykit.verify(bucket).committed_rows == ROWS


def test_a_signal_while_the_sender_is_at_work_leaves_nothing_of_others_on_this_machine(
    mc: Path, bucket: str, tmp_path: Path, as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_rank(0, 2)
    deploykit.run(mc, SLOW, bucket, **SIZE)
    made = PartialMirror(store(bucket), tmp_path / "copy" / "run", 1)
    made.fetch()
    assert list((made.copy / "parts").iterdir())
    monkeypatch.setattr(made._sender, "join", lambda: signal.raise_signal(signal.SIGTERM))
    problem = made.finish()
    assert re.search(r"stopped by SIGTERM before all was sent\. .* copy it there", str(problem))
    assert not list((made.copy / "parts").iterdir())


def test_what_is_here_does_not_wait_for_the_sender(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = PartialMirror(store(bucket), tmp_path / "copy" / "run", 0)
    monkeypatch.setattr(made, "_turn", None)
    made.bring(["parts/part-000000.npy"])


def test_a_rank_that_hangs_and_is_killed_speaks_of_the_url(
    mc: Path, bucket: str, as_rank: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[Any, ...]] = []

    def end_with(end: Callable[..., object], *args: Any) -> Callable[[], object]:
        said.append(args)
        return functools.partial(end, *args)

    monkeypatch.setattr("runners.engines.local.partial", end_with)
    as_rank(0, 2)
    deploykit.run(mc, SLOW, bucket, **SIZE)
    (_, path, to_resume), *_ = said
    assert path == bucket
    assert f"-o {bucket}" in to_resume


@pytest.mark.parametrize(
    ("where", "when"),
    [("runners.partial.PartialMirror._job_there", "before it began"),
     ("runners.engines.finish.is_finished", "while what is there was checked")],
)  # fmt: skip
def test_a_signal_while_there_is_no_shard_is_told_and_leaves_no_copy(
    mc: Path, bucket: str, tmp_path: Path, where: str, when: str, as_rank: Callable[[int, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    as_rank(0, 1)
    options = {**SIZE, "write_interval": "epoch"}
    deploykit.run(mc, SLOW, bucket, **options)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(where, lambda *_: signal.raise_signal(signal.SIGTERM))
    former = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("nobody hears the signal"))
    try:
        with pytest.raises(IncompleteRunError, match=rf"^run directory {bucket}: stopped by SIGTERM {when}"):
            deploykit.run(mc, SLOW, bucket, **options)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("deploykit-")]


def test_changed_data_is_told_to_all(
    mc: Path, bucket: str, tmp_path: Path, as_rank: Callable[[int, int], None]
) -> None:
    np.save(tmp_path / "rows.npy", handmade.random_inputs("mc", ROWS)["x"])
    as_rank(0, 2)
    deploykit.run(mc, tmp_path / "rows.npy", bucket, **SIZE)
    put(bucket, "data-changed.json", b'{"change": "data rows.npy: was written to"}')
    as_rank(1, 2)
    with pytest.raises(DeploykitError, match=rf"^run directory {bucket}: data rows.npy: was written to; predict"):
        deploykit.run(mc, tmp_path / "rows.npy", bucket, **SIZE)


def test_what_an_earlier_call_said_of_itself_is_no_longer_said(
    mc: Path, bucket: str, as_rank: Callable[[int, int], None]
) -> None:
    deploykit.run(mc, SLOW, bucket, **SIZE, engine="local")
    assert files(bucket, "status/run.json")
    as_rank(0, 2)
    deploykit.run(mc, SLOW, bucket, **SIZE)
    assert not files(bucket, "status/run.json")


class TestRefused:
    def test_data_that_comes_once(self, artifact: Path, bucket: str, as_rank: Callable[[int, int], None]) -> None:
        as_rank(0, 2)
        with pytest.raises(UsageError, match=rf"^run directory {bucket}: is at a URL, and the data .* comes but once"):
            deploykit.run(artifact, f"{Path(__file__).parent / 'streams.py'}:stream", bucket)
        assert files(bucket) == {}

    def test_a_lightning_writer(self, artifact: Path, bucket: str, as_rank: Callable[[int, int], None]) -> None:
        as_rank(0, 2)
        writer = f"{Path(__file__).parents[1] / 'trainer' / 'recording.py'}:Recorder"
        with pytest.raises(UsageError, match=rf"^run directory {bucket}: is at a URL, and the writer .* called once"):
            deploykit.run(artifact, SLOW, bucket, writer=writer, writer_arg={"folder": "f", "write_interval": "batch"})
        assert files(bucket) == {}

    @pytest.mark.parametrize("attribute", ["prepares_alone", "is_here"])
    def test_ranks_that_know_of_each_other_by_a_directory_alone(
        self, artifact: Path, bucket: str, attribute: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kind: type[Engine] = type("Elsewhere", (LocalEngine,), {attribute: False})
        monkeypatch.setattr("runners.engines.table.ENGINES.load", lambda _: kind)
        with pytest.raises(UsageError, match=rf"run directory {bucket}: is at a URL, and the ranks of this engine"):
            deploykit.run(artifact, SLOW, bucket, engine="ray")
